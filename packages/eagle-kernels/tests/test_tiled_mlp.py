"""The tiled MLP: gradients of the plain one at any tile, no third forward under checkpointing, buffers of one tile only."""

from functools import partial
from typing import Any

import pytest
import torch
from eagle_kernels import tiled_mlp, use_implementation
from eagle_kernels.tiled_mlp import naive_swiglu_mlp, tiled_swiglu_mlp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


def _arguments(shape=(2, 5), hidden=6, intermediate=10, dtype=torch.float64, device="cpu") -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*shape, hidden), (intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_() for size in shapes]


@pytest.mark.parametrize("tile_tokens", [1, 3, 10, 100])
def test_gradients_are_those_of_the_plain_mlp_at_any_tile(tile_tokens):
    arguments = _arguments()
    plain = naive_swiglu_mlp(*arguments)
    tiled = tiled_swiglu_mlp(*arguments, tile_tokens=tile_tokens)
    torch.testing.assert_close(tiled, plain)
    grad = torch.randn(plain.shape, dtype=plain.dtype)
    torch.testing.assert_close(torch.autograd.grad(tiled, arguments, grad), torch.autograd.grad(plain, arguments, grad))


def test_it_passes_gradcheck():
    assert torch.autograd.gradcheck(lambda *a: tiled_swiglu_mlp(*a, tile_tokens=4), _arguments())


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("tile_tokens", [3, 100])
def test_the_kernels_give_the_float64_truth(device, tokens, tile_tokens):
    arguments = _arguments((tokens,), dtype=torch.float32, device=device)
    wide = [tensor.detach().double().requires_grad_() for tensor in arguments]
    plain = naive_swiglu_mlp(*wide)
    with use_implementation("triton"):
        tiled = tiled_swiglu_mlp(*arguments, tile_tokens=tile_tokens)
        found = torch.autograd.grad(tiled.sum(), arguments)
    expected = torch.autograd.grad(plain.sum(), wide)
    for mine, truth in zip((tiled, *found), (plain, *expected), strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile_tokens", [3, 100])
def test_checkpointing_adds_no_third_forward(monkeypatch, tile_tokens):
    x, *weights = _arguments((9,))
    forwards = []
    plain_activate = tiled_mlp._activate
    monkeypatch.setattr(tiled_mlp, "_activate", lambda *a: (forwards.append(1), plain_activate(*a))[1])

    def layer(h):
        return h + tiled_swiglu_mlp(torch.tanh(h), *weights, tile_tokens=tile_tokens)

    out = checkpoint(layer, x, use_reentrant=False)
    once = len(forwards)
    assert once == -(-9 // tile_tokens)
    found = torch.autograd.grad(out.sum(), (x, *weights))
    assert len(forwards) == once
    expected = torch.autograd.grad((x + naive_swiglu_mlp(torch.tanh(x), *weights)).sum(), (x, *weights))
    torch.testing.assert_close(found, expected)


def test_only_what_needs_a_gradient_gets_one():
    x, gate, up, down = _arguments()
    frozen = [gate.detach(), up, down.detach()]
    found = torch.autograd.grad(tiled_swiglu_mlp(x, *frozen, tile_tokens=4).sum(), (x, up))
    torch.testing.assert_close(found, torch.autograd.grad(naive_swiglu_mlp(x, *frozen).sum(), (x, up)))
    with torch.no_grad():
        assert not tiled_swiglu_mlp(x, gate, up, down, tile_tokens=4).requires_grad


class _Largest(TorchDispatchMode):
    """Most elements of any tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_wide_activations_exist_for_one_tile_only():
    x, *weights = (tensor.detach() for tensor in _arguments((640,), hidden=4, intermediate=32))
    with _Largest() as seen:
        # The functions behind the registered operators, whose inside a dispatch mode does not see.
        y = tiled_mlp._forward._init_fn(x, *weights, 128)
        tiled_mlp._backward._init_fn(torch.ones_like(y), x, *weights, 128, [True] * 4)
    assert seen.elements == 128 * 32


def test_bfloat16_weight_gradients_are_summed_over_tiles_without_losing_small_parts():
    x = torch.ones(4096, 1, dtype=torch.bfloat16)
    one: Any = [torch.ones(1, 1, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    tiled_swiglu_mlp(x, one[0], one[1], one[2], tile_tokens=16).sum().backward()
    inner = torch.nn.functional.silu(torch.ones((), dtype=torch.bfloat16)).item()
    assert one[2].grad is not None
    assert one[2].grad.item() == pytest.approx(4096 * inner, rel=2**-8)


def test_it_compiles_as_one_graph_and_equals_eager():
    arguments = _arguments()
    compiled: Any = torch.compile(partial(tiled_swiglu_mlp, tile_tokens=4), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*arguments).sum(), arguments)
    expected = torch.autograd.grad(tiled_swiglu_mlp(*arguments, tile_tokens=4).sum(), arguments)
    torch.testing.assert_close(found, expected)


def test_the_registered_operators_pass_opcheck(device):
    x, *weights = (tensor.detach() for tensor in _arguments((7,), dtype=torch.float32, device=device))
    with use_implementation("triton"):
        torch.library.opcheck(torch.ops.eagle_kernels.tiled_swiglu_mlp.default, (x, *weights, 3))
        arguments = (torch.ones_like(x), x, *weights, 3, [True, False, True, True])
        torch.library.opcheck(torch.ops.eagle_kernels.tiled_swiglu_mlp_backward.default, arguments)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"gate_weight has shape \[10, 5\]", {"gate_weight": torch.zeros(10, 5)}),
        (ValueError, r"up_weight has shape \[9, 6\]", {"up_weight": torch.zeros(9, 6)}),
        (ValueError, r"down_weight has shape \[10, 6\]", {"down_weight": torch.zeros(10, 6)}),
        (TypeError, "down_weight is torch.float64", {"down_weight": torch.zeros(6, 10, dtype=torch.float64)}),
        (ValueError, "up_weight is on meta", {"up_weight": torch.zeros(10, 6, device="meta")}),
        (ValueError, "tile_tokens", {"tile_tokens": 0}),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, change):
    arguments = {
        "x": torch.zeros(4, 6),
        "gate_weight": torch.zeros(10, 6),
        "up_weight": torch.zeros(10, 6),
        "down_weight": torch.zeros(6, 10),
        "tile_tokens": 2,
    }
    with pytest.raises(error, match=match):
        tiled_swiglu_mlp(**(arguments | change))
