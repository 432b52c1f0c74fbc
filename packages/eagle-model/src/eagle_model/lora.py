"""LoRA on the tower, the connector and the language model, through peft, and back to an ordinary folder.

It promises adapters on the layers the released trainer adapts (upstream section 1.1: rank for tower and language model), and a
merge that leaves the released key names. peft is needed when a function is called (extra `lora`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

TARGETS = {
    "vision_model": r"vision_model\..*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))",
    "mlp1": r"mlp1\.\d+",
    "language_model": (
        r"language_model\..*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
    ),
}
"""Part of the model to a pattern over the full names of the linear layers it adapts."""


def lora_config(
    model: Any,
    parts: Iterable[str] = ("language_model",),
    *,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.05,
    **kwargs: Any,
) -> Any:
    """A `peft.LoraConfig` for some parts of an Eagle; give it to `peft.get_peft_model`.

    Args:
        model: the Eagle to adapt; layers that its output does not depend on get no adapter.
        parts: of `vision_model`, `mlp1`, `language_model`.
        rank: of every adapter.
        alpha: scale times rank; None means 2 x rank, as released.
        dropout: before the adapter.
        **kwargs: to `LoraConfig`, e.g. `modules_to_save=["mlp1"]` to train the connector whole.

    Raises:
        ValueError: an unknown part or none.
        ImportError: peft is not installed.
    """
    chosen = tuple(parts)
    unknown = [part for part in chosen if part not in TARGETS]
    if unknown or not chosen:
        raise ValueError(f"LoRA parts {list(chosen)}: choose one or more of {', '.join(TARGETS)}")
    pattern = "|".join(f"(?:{TARGETS[part]})" for part in chosen)
    unused = {name.rsplit(".", 1)[0] for name in model.unused_parameter_names()}
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = [name for name in linear if re.fullmatch(pattern, name) and name not in unused]
    return _peft().LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        **kwargs,
    )


def merge_adapter(model: str | Path, adapter: str | Path, out: str | Path, *, dtype: torch.dtype | None = None) -> int:
    """Fold a saved adapter into the Eagle it was trained on and write an ordinary folder, processor included.

    Returns how many layers were merged. Raises ValueError where `out` exists and is not empty or the adapter fits no layer,
    ImportError without peft.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; choose another output")
    peft = _peft()
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype or "auto")
    adapted = peft.PeftModel.from_pretrained(base, str(adapter))
    layers = sum(1 for module in adapted.modules() if hasattr(module, "merge") and hasattr(module, "lora_A"))
    if layers == 0:
        raise ValueError(f"{adapter} adapts no layer of {model}; was it trained on this model?")
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.save_pretrained(target)
    AutoProcessor.from_pretrained(model).save_pretrained(target)
    return layers


def _peft() -> Any:
    try:
        import peft  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ImportError("LoRA needs peft; install eagle-model[lora]") from error
    return peft
