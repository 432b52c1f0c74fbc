"""The norms and MLPs that apply puts in: SigLIP's, torch's LayerNorm, tiled SwiGLU, adapters and autocast, a LLaVA-like whole."""

import copy
from typing import Any

import eagle_kernels
import pytest
import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.siglip.modeling_siglip import SiglipMLP, SiglipVisionModel
from transformers.models.siglip2.configuration_siglip2 import Siglip2VisionConfig
from transformers.models.siglip2.modeling_siglip2 import Siglip2MLP

_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_GELU_MLPS = {"siglip": (SiglipMLP, SiglipVisionConfig), "siglip2": (Siglip2MLP, Siglip2VisionConfig)}


def _gelu_mlp(kind="siglip", **extra):
    torch.manual_seed(0)
    mlp, config = _GELU_MLPS[kind]
    return mlp(config(hidden_size=64, intermediate_size=96, num_attention_heads=2, **extra))


def _swiglu_mlp():
    torch.manual_seed(0)
    return Qwen2MLP(Qwen2Config(hidden_size=16, intermediate_size=40))


def _row(model, path="(root)"):
    return next(row for row in eagle_kernels.explain(model) if row.path == path)


def _value_and_grads(module, x):
    x = x.detach().clone().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("kind", _GELU_MLPS)
def test_the_mlp_of_siglip_agrees_to_float32_rounding_gradients_too(kind):
    mlp = _gelu_mlp(kind)
    x = torch.randn(2, 5, 64)
    before = _value_and_grads(mlp, x)
    eagle_kernels.apply(mlp)
    assert _row(mlp).implementation == "torch"
    torch.testing.assert_close(_value_and_grads(mlp, x), before, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_mlp_of_siglip_is_as_close_to_the_truth_as_the_original():
    mlp = _gelu_mlp()
    x = torch.randn(200, 64).bfloat16()
    short = copy.deepcopy(mlp).bfloat16()
    truth = copy.deepcopy(short).double()(x.double())
    own = (short(x).double() - truth).norm()
    assert (eagle_kernels.apply(short)(x).double() - truth).norm() <= 1.02 * own


def test_another_activation_or_a_missing_bias_is_refused():
    exact = eagle_kernels.apply(nn.ModuleList([_gelu_mlp(hidden_act="gelu"), _gelu_mlp()]))
    assert "not the tanh form of GELU" in _row(exact, "0").why
    bare = _gelu_mlp()
    bare.fc1 = nn.Linear(64, 96, bias=False)
    with pytest.warns(UserWarning, match="changed nothing"):
        eagle_kernels.apply(bare)
    assert "fc1 has no bias" in _row(bare).why


class _Adapter(nn.Module):
    """An adapter as peft builds them: holds the layer it stands in for, and hands its arguments on."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.weight, self.bias = base_layer.weight, base_layer.bias

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x, *args, **kwargs) + x.sum(-1, keepdim=True)


@pytest.mark.parametrize("mlp, names", [(_gelu_mlp, ("fc1", "fc2")), (_swiglu_mlp, ("gate_proj", "up_proj", "down_proj"))])
@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize("after", [False, True])
def test_an_adapter_on_a_projection_counts_whether_it_came_before_or_after(mlp, names, position, after):
    adapted, applied = mlp(), mlp()
    if after:
        eagle_kernels.apply(applied, mlp_tile_tokens=2)
    for module in (adapted, applied):
        setattr(module, names[position], _Adapter(getattr(module, names[position])))
    if not after and mlp is _swiglu_mlp:
        eagle_kernels.apply(applied, mlp_tile_tokens=2)
        assert f"not in tiles: {names[position]} is no plain torch.nn.Linear" in _row(applied).why
    x = torch.randn(5, adapted(torch.zeros(1, 64 if mlp is _gelu_mlp else 16)).shape[-1])
    torch.testing.assert_close(applied(x), adapted(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile_tokens", [1, 3, 100])
def test_a_tiled_mlp_agrees_gradients_too_and_says_that_it_is_tiled(tile_tokens):
    mlp = _swiglu_mlp()
    x = torch.randn(2, 5, 16)
    before = _value_and_grads(mlp, x)
    eagle_kernels.apply(mlp, mlp_tile_tokens=tile_tokens)
    assert f"in tiles of {tile_tokens} tokens" in _row(mlp).why
    torch.testing.assert_close(_value_and_grads(mlp, x), before, rtol=1e-5, atol=1e-5)
    eagle_kernels.apply(mlp)
    assert "tiles" not in _row(mlp).why


def test_tiles_reach_the_tiled_operator_and_nothing_else_does(monkeypatch):
    calls = []

    def tiled(x, gate, up, down, *, tile_tokens):
        calls.append(tile_tokens)
        return x

    monkeypatch.setattr("eagle_kernels.forwards.tiled_swiglu_mlp", tiled)
    mlp = eagle_kernels.apply(_swiglu_mlp(), mlp_tile_tokens=7)
    mlp(torch.randn(3, 16))
    eagle_kernels.apply(mlp)(torch.randn(3, 16))
    assert calls == [7]


def test_tiles_are_refused_where_they_would_pass_something_by():
    config = LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2, mlp_bias=True)
    hooked = _swiglu_mlp()
    seen = []
    hooked.up_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    both = eagle_kernels.apply(nn.ModuleList([LlamaMLP(config), hooked]), mlp_tile_tokens=2)
    assert _row(both, "0").why.endswith("not in tiles: gate_proj has a bias")
    assert "not in tiles: up_proj has forward hooks" in _row(both, "1").why
    hooked(torch.randn(3, 16))
    assert seen == [(3, 40)]


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_gives_the_bits_of_torch_with_and_without_a_bias(bias):
    norm = nn.LayerNorm(24, eps=1e-3, bias=bias)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24) * 4 + 2
    before = norm(x)
    eagle_kernels.apply(norm)
    assert _row(norm).implementation == "torch"
    assert torch.equal(norm(x), before)


def test_layer_norms_of_another_kind_are_refused_with_the_reason():
    class Own(nn.LayerNorm):
        pass

    norms = nn.ModuleList([nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm([2, 4]), Own(4), nn.LayerNorm(4)])
    eagle_kernels.apply(norms)
    whys = [_row(norms, str(index)) for index in range(4)]
    assert [row.implementation for row in whys] == ["module's own"] * 3 + ["torch"]
    assert "no weight" in whys[0].why
    assert "more than one dimension" in whys[1].why
    assert "subclass" in whys[2].why


def test_under_autocast_every_forward_runs_and_stays_near_the_original():
    torch.manual_seed(0)
    tower = SiglipVisionModel(SiglipVisionConfig(**_TOWER))
    modules = [
        (tower, torch.randn(1, 3, 16, 16)),
        (_swiglu_mlp(), torch.randn(4, 16)),
        (nn.LayerNorm(16), torch.randn(4, 16).bfloat16()),
    ]
    for module, x in modules:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = module(x)
            after = eagle_kernels.apply(module, mlp_tile_tokens=2)(x)
        before, after = (getattr(output, "last_hidden_state", output) for output in (before, after))
        assert after.dtype == before.dtype
        torch.testing.assert_close(after, before, rtol=3e-2, atol=3e-2)


def test_forwards_run_on_the_meta_device():
    for module, width in ((_gelu_mlp(), 64), (_swiglu_mlp(), 16), (nn.LayerNorm(16), 16)):
        eagle_kernels.apply(module.to("meta"), mlp_tile_tokens=2)
        assert module(torch.empty(3, width, device="meta")).shape == (3, width)


def _llava():
    torch.manual_seed(0)
    text = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_TOWER, vision_use_head=False),
        text_config=text,
        image_token_index=49,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).train()


def test_a_llava_like_composite_is_covered_in_both_towers_and_keeps_its_logits():
    model = _llava()
    ids = torch.cat((torch.full((1, 4), 49), torch.arange(6)[None]), dim=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16), "labels": ids.masked_fill(ids == 49, -100)}
    before = model(**inputs)
    grads = torch.autograd.grad(before.loss, list(model.parameters()), allow_unused=True)
    eagle_kernels.apply(model)
    after = model(**inputs)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-5, atol=1e-6)
    for one, other in zip(grads, torch.autograd.grad(after.loss, list(model.parameters()), allow_unused=True), strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    rows = eagle_kernels.explain(model)
    unchanged = [row.path for row in rows if row.implementation == "module's own"]
    assert unchanged == ["lm_head"]
    assert {row.operator for row in rows} == {
        "rms_norm",
        "layer_norm",
        "rope",
        "swiglu",
        "bias_gelu_tanh",
        "linear_cross_entropy",
    }
