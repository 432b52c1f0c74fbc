"""LoRA on every part of the model, and back to an ordinary folder."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from eagle_model.cli import main
from eagle_model.lora import TARGETS, lora_config, merge_adapter
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

peft: Any = pytest.importorskip("peft", reason="LoRA is the extra eagle-model[lora]")

PARTS = tuple(TARGETS)


def batch(model: Any) -> dict[str, Any]:
    ids = torch.tensor([[1, *[model.config.image_token_index] * 4, 2, 3, 4]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": pixels, "labels": ids}


def adapted(model: Any, parts: Any = PARTS, **options: Any) -> Any:
    return peft.get_peft_model(model, lora_config(model, parts, rank=2, dropout=0.0, **options))


def scramble(model: Any) -> None:
    """peft starts with B = 0, which merges to nothing."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))


@pytest.fixture
def folder(make_model: Any, processor: Any, tmp_path: Any) -> Any:
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("part", PARTS)
def test_only_the_chosen_part_is_adapted_and_every_adapter_gets_a_gradient(make_model: Any, part: str):
    model = adapted(make_model(dtype=torch.float32), [part])
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(f".{part}." in f".{name}" and "lora_" in name for name in names)
    scramble(model)
    model(**batch(model.base_model.model)).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_every_linear_layer_of_the_blocks_is_adapted(make_model: Any):
    model = adapted(make_model(dtype=torch.float32))
    layers = {
        name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in model.named_modules() if ".lora_A." in name
    }
    language = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    language |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    tower = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"}
    expected = {f"language_model.model.layers.{i}.{name}" for i in range(2) for name in language}
    expected |= {f"vision_model.vision_model.encoder.layers.{i}.{name}" for i in range(3) for name in tower}
    assert layers == expected | {"mlp1.1", "mlp1.3"}


def test_layers_that_no_output_depends_on_get_no_adapter(make_model: Any):
    model = adapted(make_model(select_layer=-3, dtype=torch.float32), ["vision_model"])
    assert not any("layers.2." in name for name, _ in model.named_parameters() if "lora_" in name)


def test_a_merged_folder_has_the_released_keys_and_the_adapted_model_s_answers(folder: Any, tmp_path: Any, capsys: Any):
    base = AutoModelForImageTextToText.from_pretrained(folder)
    model = adapted(base)
    scramble(model)
    with torch.no_grad():
        expected = model(**batch(base)).logits
    model.save_pretrained(tmp_path / "adapter")
    arguments = ["merge-lora", "--model", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert main(arguments) == 0
    assert "34 layers merged" in capsys.readouterr().out
    keys = []
    for path in (folder, tmp_path / "merged"):
        with safe_open(path / "model.safetensors", "pt") as file:
            keys.append(set(file.keys()))
    assert keys[0] == keys[1]
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "merged")]
    for config in configs:
        for part in ("vision_config", "text_config"):
            config[part].pop("dtype", None)  # loading writes it into the parts, whatever they came from
    assert configs[0] == configs[1]
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch(base)).logits, expected, rtol=1e-4, atol=1e-4)
        plain = AutoModelForImageTextToText.from_pretrained(folder)(**batch(base)).logits
    assert (plain - expected).abs().max() > 0.1
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokens_per_tile == 4
    assert main(arguments) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_an_adapted_model_generates_as_it_scores(make_model: Any):
    model = make_model(dtype=torch.float32)
    inputs = batch(model)
    del inputs["labels"]
    wrapped = adapted(model)
    scramble(wrapped)
    with torch.no_grad():
        first = int(wrapped(**inputs).logits[0, -1].argmax())
    new = wrapped.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert new.shape == (1, 2)
    assert int(new[0, 0]) == first


@pytest.mark.parametrize("reentrant", [True, False])
def test_adapters_train_under_gradient_checkpointing(make_model: Any, recompute: Any, reentrant: bool):
    model = make_model(dtype=torch.float32).train()
    wrapped = adapted(model)
    scramble(wrapped)

    def gradients() -> list[torch.Tensor]:
        wrapped.zero_grad()
        wrapped(**batch(model)).loss.backward()
        return [parameter.grad.clone() for parameter in wrapped.parameters() if parameter.requires_grad]

    plain = gradients()
    recompute(model, {"use_reentrant": reentrant})
    if reentrant:  # its inputs come from frozen embeddings and pixels, which need no gradient by themselves
        model.enable_input_require_grads()
        model.vision_model.vision_model.embeddings.register_forward_hook(lambda module, given, output: output.requires_grad_())
    for again, before in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(again, before)


def test_parts_that_do_not_exist_and_adapters_that_do_not_fit_are_errors(make_model: Any, folder: Any, tmp_path: Any):
    with pytest.raises(ValueError, match="choose one or more of vision_model, mlp1, language_model"):
        lora_config(make_model(), ["tower"])
    with pytest.raises(ValueError, match="choose one or more"):
        lora_config(make_model(), [])
    with pytest.raises((ValueError, OSError)):
        merge_adapter(folder, tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()
