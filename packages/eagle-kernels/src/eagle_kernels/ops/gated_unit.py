"""Gated activations of MLPs: SwiGLU and GEGLU, on separate or packed gate and up projections.

The twin computes the activation in float32 for bfloat16 and float16 and rounds it to the input's dtype, then multiplies by `up`
in that dtype: bit for bit what `act_fn(gate) * up` gives in transformers' MLPs. The kernels round once, after the product.
float64 stays float64 (twin).
Only the element-wise part; the projections are the caller's (see modules.SwiGLUMLP).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape
from eagle_kernels.implementation import launches, require_kernels, runs_triton
from eagle_kernels.ops.eager import with_short_way


def naive_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The truth of `swiglu`: plain PyTorch, no checks."""
    return F.silu(gate) * up


def naive_geglu(gate: Tensor, up: Tensor) -> Tensor:
    """The truth of `geglu`: plain PyTorch, no checks."""
    return F.gelu(gate, approximate="tanh") * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate: [..., intermediate], a float dtype, any strides.
        up: shape, dtype and device of gate.

    Returns:
        [..., intermediate] in their dtype.

    Raises:
        TypeError: gate or up is not a float tensor, or their dtypes differ.
        ValueError: their shapes or devices differ.
    """
    _check("swiglu", gate, up)
    return _run_gated_unit(gate, up, False) if runs_triton(gate) else naive_swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Gemma's); arguments, result and errors as `swiglu`."""
    _check("geglu", gate, up)
    return _run_gated_unit(gate, up, True) if runs_triton(gate) else naive_geglu(gate, up)


def swiglu_packed(gate_up: Tensor) -> Tensor:
    """`swiglu` on one tensor that holds gate in its first half and up in its second.

    Args:
        gate_up: [..., 2 * intermediate], a float dtype.

    Returns:
        [..., intermediate] in its dtype.

    Raises:
        TypeError: gate_up is not a float tensor.
        ValueError: its last dimension is missing or odd.
    """
    gate, up = _halves("swiglu_packed", gate_up)
    return _run_gated_unit_packed(gate_up, False) if runs_triton(gate_up) else naive_swiglu(gate, up)


def geglu_packed(gate_up: Tensor) -> Tensor:
    """`geglu` on one tensor that holds gate in its first half and up in its second; shapes and errors as `swiglu_packed`."""
    gate, up = _halves("geglu_packed", gate_up)
    return _run_gated_unit_packed(gate_up, True) if runs_triton(gate_up) else naive_geglu(gate, up)


def _check(operator: str, gate: Tensor, up: Tensor) -> None:
    check_float(operator, gate=gate, up=up)
    check_shape(operator, tuple(gate.shape), "like gate", up=up)
    check_same_device(operator, "gate", gate.device, up=up)
    check_same_dtype(operator, "gate", gate.dtype, up=up)


def _halves(operator: str, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    check_float(operator, gate_up=gate_up)
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"{operator}: gate_up has shape {list(gate_up.shape)}; its last dimension must be even (gate, then up).")
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


@torch.library.custom_op("eagle_kernels::gated_unit", mutates_args=())
def _gated_unit(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    require_kernels("swiglu", gate)
    from eagle_kernels.kernels import gated_unit as kernels

    return kernels.forward(gate, up, gelu)


@torch.library.custom_op("eagle_kernels::gated_unit_backward", mutates_args=())
def _gated_unit_backward(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    from eagle_kernels.kernels import gated_unit as kernels

    return kernels.backward(grad, gate, up, gelu)


@torch.library.custom_op("eagle_kernels::gated_unit_packed", mutates_args=())
def _gated_unit_packed(gate_up: Tensor, gelu: bool) -> Tensor:
    require_kernels("swiglu_packed", gate_up)
    from eagle_kernels.kernels import gated_unit as kernels

    gate, up = gate_up.chunk(2, -1)
    return kernels.forward(gate, up, gelu)


@torch.library.custom_op("eagle_kernels::gated_unit_packed_backward", mutates_args=())
def _gated_unit_packed_backward(grad: Tensor, gate_up: Tensor, gelu: bool) -> Tensor:
    from eagle_kernels.kernels import gated_unit as kernels

    return kernels.backward_packed(grad, gate_up, gelu)


@_gated_unit.register_fake
def _(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    return gate.new_empty(gate.shape)


@_gated_unit_backward.register_fake
def _(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


@_gated_unit_packed.register_fake
def _(gate_up: Tensor, gelu: bool) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@_gated_unit_packed_backward.register_fake
def _(grad: Tensor, gate_up: Tensor, gelu: bool) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.gelu = inputs
    ctx.save_for_backward(*tensors)


def _gated_unit_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    gate, up = ctx.saved_tensors
    if not launches(grad):
        return *_gated_unit_backward(grad, gate, up, ctx.gelu), None
    from eagle_kernels.kernels import gated_unit as kernels

    return *kernels.backward(grad, gate, up, ctx.gelu), None


def _gated_unit_packed_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (gate_up,) = ctx.saved_tensors
    if not launches(grad):
        return _gated_unit_packed_backward(grad, gate_up, ctx.gelu), None
    from eagle_kernels.kernels import gated_unit as kernels

    return kernels.backward_packed(grad, gate_up, ctx.gelu), None


_run_gated_unit = with_short_way(_gated_unit, _save, _gated_unit_autograd)
_run_gated_unit_packed = with_short_way(_gated_unit_packed, _save, _gated_unit_packed_autograd)
