"""Quantised loading as `docs/how-to/inference.md` shows it, on a CPU: what is quantised, and how far the logits move.

The bounds are on the distance of the logits from those of the whole weights, relative to these logits: a toy model with random
weights (seen with torchao 0.18.0 and bitsandbytes 0.50.2: 0.016 and 0.021 in 8 bits, 0.30 in 4). Skipped without these packages.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

KEEP = ["vision_model", "mlp1", "lm_head", "language_model.lm_head"]
WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""4-bit blocks are 64 values long."""


@pytest.fixture(scope="module")
def whole(make_config: Any, tmp_path_factory: Any) -> Any:
    """The folder of a toy model whose language model is wide enough for 4-bit blocks, the model, and an input for it."""
    from eagle_model import Eagle2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model: Any = Eagle2_5_VLForConditionalGeneration(make_config(text_options=WIDE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.05)
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    ids = torch.tensor([[1, *[model.config.image_token_index] * 4, *range(2, 20)]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return folder, model, {"input_ids": ids, "pixel_values": pixels}


def distance(model: Any, whole: Any) -> float:
    """Of a model's logits from those of the whole weights, relative to the size of the latter."""
    _, reference, inputs = whole
    with torch.no_grad():
        expected = reference(**inputs).logits
        return float((model(**inputs).logits.float() - expected).norm() / expected.norm())


def quantised_parts(model: Any) -> set[str]:
    """Kinds of linear weight by part of the model: `language_model: Int8Tensor`, and so on."""
    kinds = {
        f"{name.split('.')[0]}{' head' if name.endswith('lm_head') else ''}: {type(module.weight).__name__}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return {kind for kind in kinds if not kind.endswith(": Parameter")}


def test_torchao_makes_int8_of_the_language_model_only_and_its_folder_answers_the_same(whole: Any, tmp_path: Any):
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=KEEP)
    model: Any = AutoModelForImageTextToText.from_pretrained(whole[0], dtype=torch.float32, quantization_config=config).eval()
    assert quantised_parts(model) == {"language_model: Int8Tensor"}
    assert 1e-5 < distance(model, whole) < 0.03
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(**whole[2]).logits, model(**whole[2]).logits)


@pytest.mark.parametrize(
    ("options", "kind", "bound"),
    [
        ({"load_in_8bit": True}, "Int8Params", 0.04),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}, "Params4bit", 0.45),
    ],
)
def test_bitsandbytes_quantises_the_language_model_only_and_its_folder_answers_the_same(
    whole: Any, tmp_path: Any, options: dict[str, Any], kind: str, bound: float
):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=KEEP)
    how: Any = {"dtype": torch.float32, "device_map": {"": "cpu"}}
    model: Any = AutoModelForImageTextToText.from_pretrained(whole[0], quantization_config=config, **how).eval()
    assert quantised_parts(model) == {f"language_model: {kind}"}
    # Before the first forward: afterwards 4-bit weights may lie in the order of the CPU kernel and would be saved so.
    model.save_pretrained(tmp_path)
    assert 1e-5 < distance(model, whole) < bound
    again: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, **how).eval()
    with torch.no_grad():
        assert torch.equal(again(**whole[2]).logits, model(**whole[2]).logits)
