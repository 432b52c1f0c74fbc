"""torch.compile takes an applied model in one graph, forward and backward, and changes none of its numbers."""

import copy
import pickle
import sys

import eagle_kernels
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


def _model(family):
    torch.manual_seed(0)
    model, config = _FAMILIES[family]
    return model(config(**_SIZES))


def _assert_compiled_step_equals_eager(model, value, **inputs):
    torch._dynamo.reset()
    compiled = copy.deepcopy(model)
    expected = value(model(**inputs))
    expected.backward()
    got = value(torch.compile(compiled, fullgraph=True, backend="aot_eager")(**inputs))
    got.backward()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "family", ["qwen2", pytest.param("qwen3", marks=pytest.mark.soak), pytest.param("llama", marks=pytest.mark.soak)]
)
def test_an_applied_language_model_compiles_in_one_graph(family):
    ids = torch.arange(12).reshape(2, 6)
    model = eagle_kernels.apply(_model(family).eval(), mlp_tile_tokens=4)
    _assert_compiled_step_equals_eager(model, lambda output: output.logits.square().mean(), input_ids=ids)


@pytest.mark.parametrize(
    "family", ["qwen2", pytest.param("qwen3", marks=pytest.mark.soak), pytest.param("llama", marks=pytest.mark.soak)]
)
def test_the_loss_without_logits_compiles_in_one_graph(family):
    ids = torch.arange(12).reshape(2, 6)
    model = eagle_kernels.apply(_model(family).train())
    rows = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
    _assert_compiled_step_equals_eager(model, lambda output: output.loss, input_ids=ids, labels=ids, loss_rows=rows)


@pytest.mark.soak
def test_an_applied_vision_tower_compiles_in_one_graph():
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    model = eagle_kernels.apply(SiglipVisionModel(config))
    _assert_compiled_step_equals_eager(
        model, lambda output: output.last_hidden_state.square().mean(), pixel_values=torch.randn(2, 3, 16, 16)
    )


def test_a_model_loaded_where_none_was_applied_before_compiles_before_it_has_run(monkeypatch):
    model = eagle_kernels.apply(_model("qwen2").eval())
    ids = torch.arange(6)[None]
    expected = model(ids).logits
    pickled = pickle.dumps(model)
    for name in [name for name in sys.modules if name.startswith("eagle_kernels.rotated.")]:
        monkeypatch.delitem(sys.modules, name)
    torch._dynamo.reset()
    loaded = torch.compile(pickle.loads(pickled), fullgraph=True, backend="eager")
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-6, atol=1e-6)
