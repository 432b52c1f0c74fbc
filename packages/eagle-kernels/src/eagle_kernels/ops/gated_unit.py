"""Gated activations of MLPs: SwiGLU and GEGLU, on separate or packed gate and up projections.

The activation is computed in float32 for bfloat16 and float16 and rounded to the input's dtype, then multiplied by `up` in that
dtype: bit for bit what `act_fn(gate) * up` gives in transformers' MLPs. float64 stays float64.
Only the element-wise part; the projections are the caller's (see modules.SwiGLUMLP).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape


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
    return naive_swiglu(gate, up)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Gemma's); arguments, result and errors as `swiglu`."""
    _check("geglu", gate, up)
    return naive_geglu(gate, up)


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
    return naive_swiglu(*_halves("swiglu_packed", gate_up))


def geglu_packed(gate_up: Tensor) -> Tensor:
    """`geglu` on one tensor that holds gate in its first half and up in its second; shapes and errors as `swiglu_packed`."""
    return naive_geglu(*_halves("geglu_packed", gate_up))


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
