"""Checkpoints that the released code saved with its LoRA adapters inside: refused on loading, mended by `merge-lora`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_model.cli import main
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

RANK = 2
ADAPTED = re.compile(r"(language_model|vision_model)\..*\.(q_proj|v_proj|fc1|gate_proj)\.weight")


def as_released_with_lora(folder: Path, parts: tuple[str, ...], shards: int = 1) -> dict[str, torch.Tensor]:
    """Rewrite a saved folder as peft leaves it when it wraps whole sub-models; returns the weights that it amounts to."""
    plain = load_file(folder / "model.safetensors")
    wrapped, wanted = {}, dict(plain)
    generator = torch.Generator().manual_seed(3)
    for name, value in plain.items():
        part = name.split(".", 1)[0]
        if part not in parts:
            wrapped[name] = value
            continue
        stem = name.replace(f"{part}.", f"{part}.base_model.model.", 1)
        layer, kind = stem.rsplit(".", 1)
        match = re.fullmatch(r".*\.(q_proj|v_proj|fc1|gate_proj)", layer)
        if match is None:
            wrapped[stem] = value
            continue
        wrapped[f"{layer}.base_layer.{kind}"] = value
        if ADAPTED.fullmatch(name):
            a = torch.randn(RANK, value.shape[1], generator=generator)
            b = torch.randn(value.shape[0], RANK, generator=generator)
            wrapped[f"{layer}.lora_A.default.weight"], wrapped[f"{layer}.lora_B.default.weight"] = a, b
            wanted[name] = value + 2.0 * (b @ a)  # alpha is twice the rank in the released trainer
    config = json.loads((folder / "config.json").read_text())
    config["use_llm_lora"] = RANK if "language_model" in parts else 0
    config["use_backbone_lora"] = RANK if "vision_model" in parts else 0
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})
        return wanted
    (folder / "model.safetensors").unlink()
    names = [f"model-{index + 1:05d}-of-{shards:05d}.safetensors" for index in range(shards)]
    placed = {name: names[index % shards] for index, name in enumerate(wrapped)}  # A and B of a layer fall apart
    for file in names:
        save_file({name: wrapped[name] for name in wrapped if placed[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return wanted


@pytest.fixture
def folder(make_model: Any, processor: Any, tmp_path: Path) -> Path:
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "lora")
    processor.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
@pytest.mark.parametrize("part", ["language_model", "vision_model"])
def test_weights_wrapped_by_lora_are_refused_with_the_mend(folder: Path, auto: Any, part: str):
    as_released_with_lora(folder, (part,))
    with pytest.raises(ValueError, match=rf"{part}\.base_model\.model\..*eagle-model merge-lora --model"):
        auto.from_pretrained(folder)


@pytest.mark.parametrize("shards", [1, 3])
def test_merged_they_load_with_the_weights_they_amount_to(folder: Path, tmp_path: Path, shards: int, capsys: Any):
    wanted = as_released_with_lora(folder, ("language_model", "vision_model"), shards)
    out = tmp_path / "merged"
    assert main(["merge-lora", "--model", str(folder), "--out", str(out)]) == 0
    adapted = sum(ADAPTED.fullmatch(name) is not None for name in wanted)
    assert f"{out}: {adapted} layers merged" in capsys.readouterr().out
    loaded: Any = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = model.state_dict()
    assert set(state) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(state[name], value)
    assert model.config.use_llm_lora == model.config.use_backbone_lora == 0
    assert (out / "tokenizer.json").is_file()
    assert main(["merge-lora", "--model", str(folder), "--out", str(out)]) == 2


def test_a_rank_alone_in_the_config_refuses_nothing(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["use_llm_lora"] = 16  # merged by other means, the config left as it was
    (folder / "config.json").write_text(json.dumps(config))
    assert AutoModelForImageTextToText.from_pretrained(folder).config.use_llm_lora == 16


def test_without_an_adapter_in_it_or_beside_it_there_is_nothing_to_merge(folder: Path, tmp_path: Path, capsys: Any):
    assert main(["merge-lora", "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "--adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_half_an_adapter_is_an_error_that_names_it(folder: Path, tmp_path: Path, capsys: Any):
    as_released_with_lora(folder, ("language_model",))
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if name.endswith("lora_B.default.weight"))
    del state[lost]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(["merge-lora", "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert lost in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
