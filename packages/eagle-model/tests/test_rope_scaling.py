"""`rope_scaling` of the text config reaches the language model's rotary angles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from eagle_model import Eagle2_5_VLConfig

THETA, FACTOR, ORIGINAL, HEAD_DIM = 10000.0, 4.0, 64, 8
YARN = {"rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL}
OPTIONS = {"rope_theta": THETA, "max_position_embeddings": int(ORIGINAL * FACTOR)}


def yarn_frequencies() -> torch.Tensor:
    """From the YaRN paper (arXiv 2309.00071, section 3.2): interpolate slow dimensions, keep fast ones, a ramp between them."""
    plain = [THETA ** (-2 * d / HEAD_DIM) for d in range(HEAD_DIM // 2)]

    def dimension_of(rotations: float) -> float:
        return HEAD_DIM * math.log(ORIGINAL / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(dimension_of(32)), 0), min(math.ceil(dimension_of(1)), HEAD_DIM - 1)
    ramp = [min(max((d - low) / (high - low), 0.0), 1.0) for d in range(HEAD_DIM // 2)]
    return torch.tensor([f / FACTOR * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)])


@pytest.mark.parametrize("text", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
def test_yarn_gives_the_frequencies_and_the_temperature_of_the_paper(make_config: Any, make_model: Any, text: str):
    model = make_model(make_config(text=text, text_options={**OPTIONS, "rope_scaling": dict(YARN)}))
    rotary = model.language_model.model.rotary_emb
    torch.testing.assert_close(rotary.inv_freq.float(), yarn_frequencies(), rtol=1e-5, atol=1e-7)
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(FACTOR) + 1)
    plain = make_model(make_config(text=text, text_options=OPTIONS))
    ids = torch.arange(1, 40)[None]
    assert (model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    "scaling",
    [
        dict(YARN),
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
    ],
)
def test_a_saved_model_with_scaling_answers_the_same_after_loading(
    make_config: Any, make_model: Any, tmp_path: Any, scaling: Any
):
    """Also under the older key `type`."""
    model = make_model(make_config(text_options={**OPTIONS, "rope_scaling": scaling}), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    ids = torch.arange(1, 100)[None]
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_linear_scaling_by_two_equals_positions_at_half_the_pace(make_config: Any, make_model: Any):
    scaled = make_model(make_config(text_options={**OPTIONS, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}))
    plain = make_model(make_config(text_options=OPTIONS))
    ids = torch.arange(1, 20)[None]
    positions = torch.arange(19)[None]
    torch.testing.assert_close(
        scaled(input_ids=ids, position_ids=2 * positions).logits, plain(input_ids=ids, position_ids=positions).logits
    )


def test_scaling_given_after_loading_a_plain_checkpoint_is_honoured(make_config: Any, make_model: Any, tmp_path: Any):
    """How a longer context is asked of a released folder: load the config, add the key, load the weights with it."""
    model = make_model(make_config(text_options=OPTIONS), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    fields = Eagle2_5_VLConfig.from_pretrained(tmp_path).to_dict()
    text = {key: value for key, value in fields["text_config"].items() if key != "rope_parameters"}
    fields["text_config"] = {**text, "rope_theta": THETA, "rope_scaling": dict(YARN)}
    again = type(model).from_pretrained(tmp_path, config=Eagle2_5_VLConfig(**fields))
    torch.testing.assert_close(again.language_model.model.rotary_emb.inv_freq, yarn_frequencies(), rtol=1e-5, atol=1e-7)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
