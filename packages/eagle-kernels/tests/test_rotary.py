"""The rotation inside attention: position ids in place of cos and sin where that is exact, cos and sin everywhere else."""

import copy
from typing import Any

import eagle_kernels
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}
_ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 16,
    },
}


def _model(family="qwen2", **extra) -> Any:
    model, config = _FAMILIES[family]
    torch.manual_seed(0)
    result = model(config(**_SIZES, head_dim=8, attn_implementation="eager", **extra)).eval()
    for name, parameter in result.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            nn.init.normal_(parameter, std=0.3)  # large scores, so that a wrong angle shows
    return result


def _rows(model):
    return {row.path: row for row in eagle_kernels.explain(model)}


@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
@pytest.mark.parametrize("family", _FAMILIES)
def test_exact_rope_types_take_positions_and_agree_with_transformers(family, rope):
    model = _model(family, rope_parameters=_ROPE[rope])
    ids = torch.randint(50, (2, 40))
    positions = torch.stack((torch.arange(40), torch.arange(40).flip(0) + 13))
    before = model(ids, position_ids=positions).logits
    unrotated = model(ids, position_ids=torch.zeros_like(positions)).logits
    eagle_kernels.apply(model)
    cos, sin = model.model.rotary_emb(before, positions)
    assert torch.equal(cos, positions)
    assert sin is None
    torch.testing.assert_close(model(ids, position_ids=positions).logits, before, rtol=1e-5, atol=1e-5)
    assert (unrotated - before).abs().max() > 1e-3


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rope_types_that_follow_the_context_are_refused_by_name_and_keep_their_bits(rope):
    model = _model("llama", rope_parameters=_ROPE[rope])
    ids = torch.randint(50, (1, 40))
    before = model(ids).logits
    eagle_kernels.apply(model)
    assert torch.equal(model(ids).logits, before)
    rows = _rows(model)
    assert rows["model.rotary_emb"].implementation == "module's own"
    assert f"rope type {rope} changes its frequencies" in rows["model.rotary_emb"].why
    assert rows["model.layers.0.self_attn"].implementation == "torch"
    assert "cos and sin of the rotary module" in rows["model.layers.0.self_attn"].why


@pytest.mark.parametrize("family", _FAMILIES)
def test_in_bfloat16_the_rotation_is_closer_to_the_truth_than_transformers(family):
    model = _model(family, rope_parameters=_ROPE["yarn"])
    ids = torch.randint(50, (4, 60))
    truth = copy.deepcopy(model).double()(ids).logits
    half = model.bfloat16()
    half.model.rotary_emb.inv_freq = copy.deepcopy(_model(family, rope_parameters=_ROPE["yarn"]).model.rotary_emb.inv_freq)
    own = (half(ids).logits.double() - truth).norm()
    assert (eagle_kernels.apply(half)(ids).logits.double() - truth).norm() <= own


def test_a_model_cast_with_its_frequencies_rotates_by_the_cast_values_as_transformers_does():
    model = _model().bfloat16()
    model = model.float()  # inv_freq has been through bfloat16
    ids = torch.randint(50, (1, 40))
    before = model(ids).logits
    fresh = _model()(ids).logits
    torch.testing.assert_close(eagle_kernels.apply(model)(ids).logits, before, rtol=1e-5, atol=1e-5)
    assert (fresh - before).abs().max() > 1e-3


def test_frequencies_are_read_at_the_call():
    model = eagle_kernels.apply(_model())
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 0.5
    assert not torch.allclose(model(ids).logits, before)


@pytest.mark.parametrize("family", _FAMILIES)
def test_generation_with_a_cache_gives_the_same_tokens(family):
    model = _model(family)
    ids = torch.randint(2, 50, (2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    before = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    eagle_kernels.apply(model)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False), before)


def test_a_stack_with_sliding_layers_is_covered():
    model = _model(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    torch.testing.assert_close(eagle_kernels.apply(model)(ids).logits, before, rtol=1e-5, atol=1e-5)
    assert {row.implementation for row in eagle_kernels.explain(model)} == {"torch"}


@pytest.mark.parametrize("where", ["model.layers.1.self_attn", "model.rotary_emb"])
def test_one_foreign_forward_and_the_whole_stack_keeps_cos_and_sin(where):
    model = _model()
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    hooked = model.get_submodule(where)
    vars(hooked)["forward"] = hooked.forward
    eagle_kernels.apply(model)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-6, atol=1e-6)
    cos, sin = model.model.rotary_emb(before, torch.arange(20)[None])
    assert cos.is_floating_point()
    assert sin is not None
    rows = _rows(model)
    assert "another library" in rows[where].why
    assert "cos and sin of the rotary module" in rows["model.layers.0.self_attn"].why
    if where != "model.rotary_emb":
        assert "Qwen2Attention below it is not replaced" in rows["model.rotary_emb"].why


def test_applying_again_after_a_foreign_forward_came_returns_to_cos_and_sin():
    model = eagle_kernels.apply(_model())
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    attention = model.model.layers[0].self_attn
    vars(attention)["forward"] = LlamaAttention.forward.__get__(attention)
    eagle_kernels.apply(model)
    assert model.model.rotary_emb(before, torch.arange(20)[None])[1] is not None
    rows = _rows(model)
    assert rows["model.rotary_emb"].implementation == "module's own"


def test_an_attention_that_does_not_know_of_positions_fails_and_computes_nothing_wrong():
    model = eagle_kernels.apply(_model())
    del vars(model.model.layers[1].self_attn)["forward"]
    with pytest.raises(AttributeError):
        model(torch.randint(50, (1, 8)))


def test_reverting_part_of_a_stack_brings_cos_and_sin_back_for_all_of_it():
    model = _model()
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    eagle_kernels.apply(model)
    eagle_kernels.revert(model.model.layers[0])
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-6, atol=1e-6)
    eagle_kernels.apply(model.model.layers[0])
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-6, atol=1e-6)


def test_applying_to_a_layer_of_an_applied_stack_changes_nothing():
    model = eagle_kernels.apply(_model())
    ids = torch.randint(50, (1, 20))
    before = model(ids).logits
    eagle_kernels.apply(model.model.layers[0])
    assert torch.equal(model(ids).logits, before)


def test_positions_that_are_not_whole_numbers_get_cos_and_sin():
    model = _model()
    ids = torch.randint(50, (1, 20))
    positions = torch.arange(20)[None] / 2
    before = model(ids, position_ids=positions).logits
    torch.testing.assert_close(eagle_kernels.apply(model)(ids, position_ids=positions).logits, before, rtol=1e-6, atol=1e-6)


def test_a_forward_that_names_no_rotation_is_refused(monkeypatch):
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *args, **kwargs: (args[0], None))
    config = LlamaConfig(**_SIZES)
    why = _rows(eagle_kernels.apply(LlamaModel(config)))
    assert why["layers.0.self_attn"].implementation == "module's own"
    assert "does not call apply_rotary_pos_emb" in why["layers.0.self_attn"].why
    assert "LlamaAttention below it is not replaced" in why["rotary_emb"].why


def test_hidden_states_and_attentions_are_captured_as_before():
    model = _model()
    ids = torch.randint(50, (1, 8))
    before = model(ids, output_attentions=True, output_hidden_states=True)
    after = eagle_kernels.apply(model)(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(after.attentions, before.attentions, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.hidden_states, before.hidden_states, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model = _model().train()
    ids = torch.randint(50, (1, 12))
    expected = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
    eagle_kernels.apply(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-6)
