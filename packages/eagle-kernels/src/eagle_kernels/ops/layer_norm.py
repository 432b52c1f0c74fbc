"""LayerNorm over the last dimension, as in the SigLIP tower and the connector of Eagle 2.5.

The twin is torch's own layer_norm: bfloat16 and float16 are normalised and scaled in float32 and rounded once to x's dtype,
float32 and float64 stay as they are. No RMS variant here; see rms_norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_eps, check_float, check_same_device, check_same_dtype, check_shape
from eagle_kernels.implementation import MAX_COLUMNS, require_kernels, runs_triton
from eagle_kernels.ops.eager import with_short_way


def naive_layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The truth of `layer_norm`: plain PyTorch, no checks."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: [..., hidden], bfloat16, float16, float32 or float64, any strides.
        weight: [hidden], dtype and device of x.
        bias: [hidden], dtype and device of x, or None for no bias.
        eps: added to the variance, non-negative.

    Returns:
        [..., hidden] in x's dtype.

    Raises:
        TypeError: a tensor is not of a float dtype, or weight or bias differ from x in dtype.
        ValueError: weight's or bias's shape or device does not fit x, or eps is negative.
    """
    parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    check_float("layer_norm", x=x, **parameters)
    if x.dim() == 0:
        raise ValueError("layer_norm: x is a scalar; it needs a last dimension of hidden size.")
    check_same_device("layer_norm", "x", x.device, **parameters)
    check_same_dtype("layer_norm", "x", x.dtype, **parameters)
    check_shape("layer_norm", (x.shape[-1],), f"because x has shape {list(x.shape)}", **parameters)
    check_eps("layer_norm", eps)
    if x.shape[-1] > MAX_COLUMNS or not runs_triton(x):
        return naive_layer_norm(x, weight, bias, eps)
    return _run_layer_norm(x, weight, bias, float(eps))[0]


@torch.library.custom_op("eagle_kernels::layer_norm", mutates_args=())
def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(normed, mean, 1 / sqrt(var + eps)), the last two of each row in float32."""
    require_kernels("layer_norm", x)
    from eagle_kernels.kernels import layer_norm as kernels

    return kernels.forward(x, weight, bias, eps)


@torch.library.custom_op("eagle_kernels::layer_norm_backward", mutates_args=())
def _layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias) of layer_norm at x; dbias has no elements without a bias."""
    require_kernels("layer_norm", x)
    from eagle_kernels.kernels import layer_norm as kernels

    return kernels.backward(grad, x, weight, has_bias, mean, rstd)


@_layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1].numel(), dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@_layer_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape if has_bias else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, _mean: Any, _rstd: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    if grad is None:
        return None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = _layer_norm_backward(grad, x, weight, ctx.has_bias, mean, rstd)
    return dx, dweight, dbias if ctx.has_bias else None, None


_run_layer_norm = with_short_way(_layer_norm, _save, _autograd)
