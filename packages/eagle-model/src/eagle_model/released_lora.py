"""Checkpoints that the released trainer saved with its LoRA adapters inside the weights (upstream section 1.3).

It promises to tell such weights by their names, and to fold the adapters in so that an ordinary folder with the released names is
left. It needs no peft. Adapters in a folder of their own are `lora.merge_adapter`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import AutoProcessor, GenerationConfig

from eagle_model.configuration import Eagle2_5_VLConfig

WRAPPED = re.compile(r"(vision_model|language_model)\.base_model\.model\.")
"""How the names begin under a part that peft has wrapped."""

_ADAPTER = re.compile(r"(.*)\.lora_(A|B)\.default\.weight")
_ALPHA_OVER_RANK = 2.0  # the released trainer has alpha = 2 x rank, and writes it nowhere


def refuse_wrapped(names: Iterable[str], source: object) -> None:
    """ValueError, with the mend, where names of weights show that a part is wrapped by LoRA."""
    wrapped = sorted(name for name in names if WRAPPED.match(name))
    if wrapped:
        raise ValueError(
            f"{source} holds LoRA adapters inside its weights ({len(wrapped)} names such as {wrapped[0]}), as the released "
            f"trainer saves them with use_llm_lora or use_backbone_lora; fold them in first: eagle-model merge-lora --model "
            f"{source} --out NEW_FOLDER"
        )


def merge_inside(folder: str | Path, out: str | Path, *, dtype: torch.dtype | None = None) -> int:
    """Fold the adapters inside a local folder's safetensors into its weights and write an ordinary folder, processor included.

    Sums are made in float32 with scale 2, the released trainer's alpha over rank, and kept in the weight's type or `dtype`.
    Returns how many layers were merged. Raises ValueError where `out` exists and is not empty, no adapter is inside, or half of
    one is missing.
    """
    source, target = Path(folder), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; choose another output")
    raw = _weights(source)
    state = {WRAPPED.sub(r"\1.", name): value for name, value in raw.items()}
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    for name in list(state):
        if match := _ADAPTER.fullmatch(name):
            adapters.setdefault(match[1], {})[match[2]] = state.pop(name)
    if not adapters:
        raise ValueError(f"{source} has no LoRA adapter inside its weights; name the folder of a separate one with --adapter")
    left = [name for name in state if ".lora_" in name or ".modules_to_save." in name]
    if left:
        raise ValueError(f"{source}: {left[0]} is a kind of adapter that the released trainer does not make; merge it with peft")
    state = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    for layer, halves in adapters.items():
        if len(halves) == 1:
            there = next(name for name in raw if WRAPPED.sub(r"\1.", name).startswith(f"{layer}.lora_"))
            lacking = there.replace("lora_A", "lora_B") if "A" in halves else there.replace("lora_B", "lora_A")
            raise ValueError(f"{source} has {there} but not {lacking}")
        weight = state.get(f"{layer}.weight")
        if weight is None:
            raise ValueError(f"{source} has an adapter for {layer}, but not the layer's weight")
        merged = weight.float() + _ALPHA_OVER_RANK * (halves["B"].float() @ halves["A"].float())
        state[f"{layer}.weight"] = merged.to(weight.dtype)
    config = Eagle2_5_VLConfig.from_pretrained(source)
    config.use_llm_lora = config.use_backbone_lora = 0
    config.architectures = config.architectures or ["Eagle2_5_VLForConditionalGeneration"]
    if dtype is not None:
        state = {name: value.to(dtype) for name, value in state.items()}
        config.dtype = dtype
    target.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict({name: value.contiguous() for name, value in state.items()}, target)
    config.save_pretrained(target)
    if (source / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source).save_pretrained(target)
    AutoProcessor.from_pretrained(source).save_pretrained(target)
    return len(adapters)


def _weights(source: Path) -> dict[str, torch.Tensor]:
    """Every weight of a folder's safetensors."""
    index = source / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        if not (source / name).is_file():
            raise ValueError(f"{source} has no {name}; give a local folder with safetensors")
        with safe_open(source / name, "pt") as file:
            weights.update((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118  # not a dict
    return weights
