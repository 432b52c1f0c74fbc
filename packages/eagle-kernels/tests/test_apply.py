"""apply and revert on real transformers models, whole and composite: same numbers, same keys, no class touched, no trace left."""

import copy
import io
import subprocess
import sys

import eagle_kernels
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}, 5),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}, 9),
    "llama": (LlamaForCausalLM, LlamaConfig, {"mlp_bias": True}, 5),
}


def _language_model(family="qwen2"):
    model, config, extra, _ = _FAMILIES[family]
    torch.manual_seed(0)
    return model(config(**_SIZES, **extra))


class _Composite(nn.Module):
    """A vision tower and a language model under the names that Eagle 2.5 gives them."""

    def __init__(self):
        super().__init__()
        self.vision_model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
            )
        )
        self.language_model = _language_model()


@pytest.mark.parametrize("family", _FAMILIES)
def test_an_applied_model_gives_the_logits_of_the_original_and_the_same_gradients(family):
    model = _language_model(family).eval()
    ids = torch.arange(12).reshape(2, 6)
    before = model(ids, labels=ids)
    grads = torch.autograd.grad(before.loss, list(model.parameters()))
    assert eagle_kernels.apply(model) is model
    after = model(ids, labels=ids)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-6, atol=1e-6)
    for one, other in zip(grads, torch.autograd.grad(after.loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    rows = [row for row in eagle_kernels.explain(model) if row.implementation == "torch"]
    counts = {operator: len([row for row in rows if row.operator == operator]) for operator in ("rms_norm", "swiglu", "rope")}
    assert counts == {"rms_norm": _FAMILIES[family][3], "swiglu": 2, "rope": 3}
    assert len(rows) == len(eagle_kernels.explain(model))


@pytest.mark.parametrize("family", _FAMILIES)
def test_norms_and_mlps_give_the_bits_of_the_original(family):
    model = _language_model(family).eval()
    ids = torch.arange(12).reshape(2, 6)
    before = model(ids).logits
    eagle_kernels.apply(model, rope=False)
    assert torch.equal(model(ids).logits, before)


def test_the_towers_of_a_composite_model_are_found():
    rows = {row.path: row for row in eagle_kernels.explain(eagle_kernels.apply(_Composite()))}
    assert rows["language_model.model.layers.1.mlp"].implementation == "torch"
    assert rows["language_model.model.norm"].implementation == "torch"
    tower = [row for path, row in rows.items() if path.startswith("vision_model")]
    assert {row.operator for row in tower} == {"layer_norm", "bias_gelu_tanh"}
    assert {row.implementation for row in tower} == {"torch"}


def test_applying_changes_instances_and_never_classes():
    norm_forward, mlp_forward = Qwen2RMSNorm.forward, Qwen2MLP.forward
    applied, other = eagle_kernels.apply(_language_model()), _language_model()
    assert Qwen2RMSNorm.forward is norm_forward
    assert Qwen2MLP.forward is mlp_forward
    assert {row.implementation for row in eagle_kernels.explain(other)} == {"module's own"}
    assert any(row.implementation == "torch" for row in eagle_kernels.explain(applied))


def test_revert_leaves_no_trace_and_apply_twice_is_apply_once():
    model = _language_model()
    keys = [set(vars(module)) for module in model.modules()]
    eagle_kernels.apply(eagle_kernels.apply(model))
    assert [set(vars(module)) for module in model.modules()] != keys
    assert eagle_kernels.revert(model) is model
    assert [set(vars(module)) for module in model.modules()] == keys


@pytest.mark.parametrize(
    ("switch", "operator"),
    [
        ("rms_norm", "rms_norm"),
        ("layer_norm", "layer_norm"),
        ("rope", "rope"),
        ("swiglu", "swiglu"),
        ("bias_gelu", "bias_gelu_tanh"),
        ("linear_cross_entropy", "linear_cross_entropy"),
    ],
)
def test_only_the_operators_asked_for_are_put_in(switch, operator):
    every = {row.operator for row in eagle_kernels.explain(eagle_kernels.apply(_Composite()))}
    rows = eagle_kernels.explain(eagle_kernels.apply(_Composite(), **{switch: False}))
    assert {row.operator for row in rows if row.implementation == "torch"} == every - {operator}


def test_state_dict_keys_and_values_do_not_change():
    model = _language_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = eagle_kernels.apply(model).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def _through_pickle(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _through_pickle], ids=["deepcopy", "pickle"])
def test_a_copied_model_computes_with_its_own_parameters(duplicate):
    model = _language_model()
    eagle_kernels.apply(model)
    twin = duplicate(model)
    with torch.no_grad():
        model.model.norm.weight.zero_()
    ids = torch.arange(6)[None]
    assert not model(ids).logits.any()
    assert twin(ids).logits.any()
    assert twin(ids, labels=ids).logits is None
    eagle_kernels.revert(twin)
    assert twin(ids, labels=ids).logits.any()
    assert model(ids, labels=ids).logits is None


def test_a_forward_set_by_another_library_is_left_alone_and_listed():
    model = _language_model()
    foreign = model.model.norm.forward
    vars(model.model.norm)["forward"] = foreign
    eagle_kernels.apply(model)
    assert vars(model.model.norm)["forward"] is foreign
    row = next(row for row in eagle_kernels.explain(model) if row.path == "model.norm")
    assert row.implementation == "module's own"
    assert "another library" in row.why
    eagle_kernels.revert(model)
    assert vars(model.model.norm)["forward"] is foreign


def test_what_cannot_be_replaced_is_listed_with_the_reason():
    class Odd(Qwen2RMSNorm):
        pass

    model = nn.ModuleDict(
        {
            "odd": Odd(4),
            "gelu": Qwen2MLP(Qwen2Config(hidden_size=4, intermediate_size=8, hidden_act="gelu")),
            "group": nn.GroupNorm(1, 4),
            "good": Qwen2RMSNorm(4),
        }
    )
    why = {row.path: (row.implementation, row.why) for row in eagle_kernels.explain(eagle_kernels.apply(model))}
    assert why["good"][0] == "torch"
    assert {why[name][0] for name in ("odd", "gelu", "group")} == {"module's own"}
    assert "subclass" in why["odd"][1]
    assert "not SiLU" in why["gelu"][1]
    assert "GroupNorm is not a class" in why["group"][1]


def test_swish_is_silu_under_another_name():
    mlp = eagle_kernels.apply(Qwen2MLP(Qwen2Config(hidden_size=4, intermediate_size=8, hidden_act="swish")))
    assert [row.implementation for row in eagle_kernels.explain(mlp)] == ["torch"]


def test_a_model_with_nothing_to_replace_is_warned_about():
    with pytest.warns(UserWarning, match="changed nothing in Linear"):
        eagle_kernels.apply(nn.Linear(2, 2))


def test_something_that_is_no_module_is_an_error():
    for call in (eagle_kernels.apply, eagle_kernels.revert, eagle_kernels.explain):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
            call("model")  # pyright: ignore[reportArgumentType]


def test_a_tile_length_that_is_no_positive_integer_is_an_error():
    for tokens in (0, -1, 2.5):
        with pytest.raises(ValueError, match="mlp_tile_tokens must be a positive integer"):
            eagle_kernels.apply(_language_model(), mlp_tile_tokens=tokens)  # pyright: ignore[reportArgumentType]


def test_importing_the_package_imports_neither_transformers_nor_triton():
    code = "import sys, eagle_kernels; print([name for name in ('transformers', 'triton') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
