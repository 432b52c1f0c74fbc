"""Bias addition and tanh GELU, the element-wise part of the SigLIP MLP between its two products.

bfloat16 and float16 are added and activated in float32 and rounded once; float64 stays float64. SigLIP's own module rounds after
the bias instead of before it, so in the short formats the two differ in the last place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape, compute_dtype
from eagle_kernels.implementation import require_kernels, runs_triton
from eagle_kernels.ops.eager import with_short_way


def naive_bias_gelu_tanh(x: Tensor, bias: Tensor) -> Tensor:
    """The truth of `bias_gelu_tanh`: plain PyTorch, no checks."""
    wide = compute_dtype(x)
    return F.gelu(x.to(wide) + bias.to(wide), approximate="tanh").to(x.dtype)


def bias_gelu_tanh(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) with the tanh form of GELU.

    Args:
        x: [..., intermediate], a float dtype: the first product of the MLP without its bias.
        bias: [intermediate], dtype and device of x.

    Returns:
        [..., intermediate] in x's dtype.

    Raises:
        TypeError: x or bias is not a float tensor, or their dtypes differ.
        ValueError: bias's shape or device does not fit x.
    """
    check_float("bias_gelu_tanh", x=x, bias=bias)
    if x.dim() == 0:
        raise ValueError("bias_gelu_tanh: x is a scalar; it needs a last dimension of intermediate size.")
    check_shape("bias_gelu_tanh", (x.shape[-1],), f"because x has shape {list(x.shape)}", bias=bias)
    check_same_device("bias_gelu_tanh", "x", x.device, bias=bias)
    check_same_dtype("bias_gelu_tanh", "x", x.dtype, bias=bias)
    return _run_bias_gelu_tanh(x, bias) if runs_triton(x) else naive_bias_gelu_tanh(x, bias)


@torch.library.custom_op("eagle_kernels::bias_gelu_tanh", mutates_args=())
def _bias_gelu_tanh(x: Tensor, bias: Tensor) -> Tensor:
    require_kernels("bias_gelu_tanh", x)
    from eagle_kernels.kernels import bias_gelu as kernels

    return kernels.forward(x, bias)


@torch.library.custom_op("eagle_kernels::bias_gelu_tanh_backward", mutates_args=())
def _bias_gelu_tanh_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dbias) of bias_gelu_tanh at x and bias."""
    require_kernels("bias_gelu_tanh", x)
    from eagle_kernels.kernels import bias_gelu as kernels

    return kernels.backward(grad, x, bias)


@_bias_gelu_tanh.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_bias_gelu_tanh_backward.register_fake
def _(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _bias_gelu_tanh_backward(grad, *ctx.saved_tensors)


_run_bias_gelu_tanh = with_short_way(_bias_gelu_tanh, _save, _autograd)
