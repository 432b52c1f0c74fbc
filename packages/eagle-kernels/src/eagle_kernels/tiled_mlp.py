"""A SwiGLU MLP over tiles of the sequence, so that its wide activations exist for one tile at a time.

Backward recomputes the gate and up products of a tile and forms its gradients before it goes on to the next; weights' gradients
are summed over tiles in float32. Under non-reentrant checkpointing there is no third forward: what backward needs is saved
before anything is computed, so the recomputation of a layer stops there (torch's early stop) if nothing later saves a tensor,
as in pre-norm decoder layers. Without checkpointing the recomputation costs two of the three forward products.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape, compute_dtype
from eagle_kernels.implementation import runs_triton
from eagle_kernels.ops.products import add_product, chunks


def naive_swiglu_mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """The truth of `tiled_swiglu_mlp`: plain PyTorch, no checks."""
    return F.linear(F.silu(F.linear(x, gate_weight)) * F.linear(x, up_weight), down_weight)


def tiled_swiglu_mlp(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, *, tile_tokens: int) -> Tensor:
    """(silu(x @ gate_weight.T) * (x @ up_weight.T)) @ down_weight.T, tile by tile.

    Three buffers [tile, intermediate] are the peak in backward (two in forward), whatever the sequence length; with several
    tiles also three float32 sums of the weights' sizes.

    Args:
        x: [..., hidden], a float dtype; tokens below means the product of its leading sizes.
        gate_weight: [intermediate, hidden], dtype and device of x.
        up_weight: like gate_weight.
        down_weight: [hidden, intermediate], dtype and device of x.
        tile_tokens: most tokens of a tile, positive; tiles are equal and multiples of 128 where that fits.

    Returns:
        [..., hidden] in x's dtype. Second derivatives are not offered.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device or tile_tokens is wrong; the message names it.
    """
    _check(x, gate_weight, up_weight, down_weight, tile_tokens)
    flat = x.reshape(-1, x.shape[-1])
    weights = (gate_weight, up_weight, down_weight)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (x, *weights)):
        return _forward(flat, *weights, tile_tokens).view(x.shape)
    remembered = _Remember.apply(flat, *weights, tile_tokens)
    with torch.no_grad():
        y = _forward(flat, *weights, tile_tokens)
    return cast(Tensor, _Attach.apply(remembered, y)).view(x.shape)


class _Remember(torch.autograd.Function):
    """Saves the MLP's inputs before its forward runs; its result has the output's shape, no memory and no values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int) -> Tensor:
        ctx.save_for_backward(x, gate_weight, up_weight, down_weight)
        ctx.tile_tokens = tile_tokens
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = list(ctx.needs_input_grad[:4])
        formed = _backward(grads[0].contiguous(), *ctx.saved_tensors, ctx.tile_tokens, wanted)
        return *(grad if want else None for grad, want in zip(formed, wanted, strict=True)), None


class _Attach(torch.autograd.Function):
    """Gives computed values the gradient of a remembered computation."""

    @staticmethod
    def forward(ctx: Any, remembered: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], None


@torch.library.custom_op("eagle_kernels::tiled_swiglu_mlp", mutates_args=())
def _forward(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    plan = list(chunks(x.shape[0], tile_tokens))
    gate_buffer, up_buffer = (x.new_empty((plan[0][1] if plan else 0, gate_weight.shape[0])) for _ in range(2))
    with torch.autocast(x.device.type, enabled=False):
        for begin, end in plan:
            gate = torch.mm(x[begin:end], gate_weight.t(), out=gate_buffer[: end - begin])
            up = torch.mm(x[begin:end], up_weight.t(), out=up_buffer[: end - begin])
            torch.mm(_activate(gate, up), down_weight.t(), out=y[begin:end])
    return y


@torch.library.custom_op("eagle_kernels::tiled_swiglu_mlp_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and the three weights; those not wanted have no elements."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else x.new_empty(0)
    sums: list[Tensor | None] = [None, None, None]
    plan = list(chunks(x.shape[0], tile_tokens))
    buffers = [x.new_empty((plan[0][1] if plan else 0, gate_weight.shape[0])) for _ in range(3)]
    with torch.autocast(x.device.type, enabled=False):
        for begin, end in plan:
            x_tile, grad_tile = x[begin:end], grad[begin:end]
            gate, up, dinner = (buffer[: end - begin] for buffer in buffers)
            torch.mm(x_tile, gate_weight.t(), out=gate)
            torch.mm(x_tile, up_weight.t(), out=up)
            torch.mm(grad_tile, down_weight, out=dinner)
            inner, dgate, dup = _differentiate(dinner, gate, up)
            for place, (a, b) in enumerate(((dgate, x_tile), (dup, x_tile), (grad_tile, inner))):
                if wanted[place + 1]:
                    sums[place] = _summed(sums[place], a.t(), b, len(plan) > 1)
            if wanted[0]:
                torch.mm(dgate, gate_weight, out=dx[begin:end])
                dx[begin:end].addmm_(dup, up_weight)
    weights = (gate_weight, up_weight, down_weight)
    dweights = [
        x.new_empty(0) if not want else torch.zeros_like(weight) if total is None else total.to(weight.dtype)
        for want, weight, total in zip(wanted[1:], weights, sums, strict=True)
    ]
    return dx, dweights[0], dweights[1], dweights[2]


def _summed(total: Tensor | None, a: Tensor, b: Tensor, several: bool) -> Tensor:
    """A single tile's product is rounded once to its dtype; several are summed in float32."""
    return add_product(total, a, b) if several else torch.mm(a, b)


def _activate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if not runs_triton(gate):
        return F.silu(gate) * up
    from eagle_kernels.kernels import gated_unit

    return gated_unit.forward(gate, up, False, into=gate)


def _differentiate(dinner: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(inner = silu(gate) * up, dgate, dup), in the memory of the arguments where the kernels run."""
    if runs_triton(gate):
        from eagle_kernels.kernels import gated_unit

        gated_unit.backward_in_place(dinner, gate, up, False)
        return dinner, gate, up
    wide = compute_dtype(gate)
    gate_wide, up_wide, grad = gate.to(wide), up.to(wide), dinner.to(wide)
    sigmoid = gate_wide.sigmoid()
    silu = gate_wide * sigmoid
    dgate = grad * up_wide * sigmoid * (1 + gate_wide * (1 - sigmoid))
    return F.silu(gate) * up, dgate.to(gate.dtype), (grad * silu).to(gate.dtype)


@_forward.register_fake
def _(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = [
        tensor.new_empty(tensor.shape) if want else x.new_empty(0)
        for tensor, want in zip((x, gate_weight, up_weight, down_weight), wanted, strict=True)
    ]
    return made[0], made[1], made[2], made[3]


def _check(x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor, tile_tokens: int) -> None:
    name = "tiled_swiglu_mlp"
    weights = {"gate_weight": gate_weight, "up_weight": up_weight, "down_weight": down_weight}
    check_float(name, x=x, **weights)
    check_same_device(name, "x", x.device, **weights)
    check_same_dtype(name, "x", x.dtype, **weights)
    if x.dim() == 0 or gate_weight.dim() != 2 or gate_weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{name}: gate_weight has shape {list(gate_weight.shape)}, expected [intermediate, hidden] with the last size of x, "
            f"whose shape is {list(x.shape)}."
        )
    intermediate, hidden = gate_weight.shape
    check_shape(name, (intermediate, hidden), "like gate_weight", up_weight=up_weight)
    check_shape(name, (hidden, intermediate), "the transpose of gate_weight", down_weight=down_weight)
    if not isinstance(tile_tokens, int) or isinstance(tile_tokens, bool) or tile_tokens < 1:
        raise ValueError(f"{name}: tile_tokens must be a positive integer, got {tile_tokens!r}.")
