"""RMSNorm over the last dimension, alone and fused with the residual addition before it.

The casting is that of the RMSNorm modules of transformers' Qwen2, Qwen3 and Llama ("llama" casting in upstream section 5):
statistics and the normalised value in float32, rounded to x's dtype, then multiplied by weight under PyTorch's promotion.
The one departure: float64 inputs stay in float64, where those modules would drop to float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eagle_kernels.arguments import check_eps, check_float, check_same_device, check_shape, compute_dtype
from eagle_kernels.implementation import MAX_COLUMNS, launches, require_kernels, runs_triton
from eagle_kernels.ops.eager import with_short_way


def naive_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The truth of `rms_norm`: plain PyTorch, no checks."""
    wide = x.to(compute_dtype(x))
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * (mean_square + eps).rsqrt()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight.

    Args:
        x: [..., hidden], bfloat16, float16, float32 or float64, any strides.
        weight: [hidden], a float dtype, on x's device.
        eps: added to the mean square, non-negative.

    Returns:
        [..., hidden] in the promoted dtype of x and weight (x's own when they agree).

    Raises:
        TypeError: x or weight is not a float tensor.
        ValueError: weight's shape or device does not fit x, or eps is negative.
    """
    _check("rms_norm", x, weight, eps)
    if not _fused(x, weight):
        return naive_rms_norm(x, weight, eps)
    return _run_rms_norm(x, weight, float(eps))[0]


def naive_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The truth of `add_rms_norm`: plain PyTorch, no checks."""
    summed = x + residual
    return naive_rms_norm(summed, weight, eps), summed


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual addition of a decoder layer and the RMSNorm that follows it.

    Args:
        x: [..., hidden], as for `rms_norm`.
        residual: shape, dtype and device of x.
        weight: [hidden], as for `rms_norm`.
        eps: as for `rms_norm`.

    Returns:
        (normed, summed), both [..., hidden]. `summed` is x + residual rounded to their dtype, the next residual, and
        `normed` is `rms_norm(summed, weight, eps)`: the rounded sum is normalised, as a decoder layer does.

    Raises:
        TypeError, ValueError: as `rms_norm`; also when residual differs from x in shape, dtype or device.
    """
    _check("add_rms_norm", x, weight, eps)
    check_float("add_rms_norm", residual=residual)
    check_shape("add_rms_norm", tuple(x.shape), "like x", residual=residual)
    check_same_device("add_rms_norm", "x", x.device, residual=residual)
    if residual.dtype != x.dtype:
        raise TypeError(f"add_rms_norm: residual is {residual.dtype} but x is {x.dtype}; cast one of them.")
    if not _fused(x, weight):
        return naive_add_rms_norm(x, residual, weight, eps)
    normed, summed, _ = _run_add_rms_norm(x, residual, weight, float(eps))
    return normed, summed


def _check(operator: str, x: Tensor, weight: Tensor, eps: float) -> None:
    check_float(operator, x=x, weight=weight)
    check_same_device(operator, "x", x.device, weight=weight)
    if x.dim() == 0:
        raise ValueError(f"{operator}: x is a scalar; it needs a last dimension of hidden size.")
    check_shape(operator, (x.shape[-1],), f"because x has shape {list(x.shape)}", weight=weight)
    check_eps(operator, eps)


def _fused(x: Tensor, weight: Tensor) -> bool:
    return x.shape[-1] <= MAX_COLUMNS and runs_triton(x, weight)


@torch.library.custom_op("eagle_kernels::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, 1 / sqrt(mean(x^2) + eps) of each row in float32)."""
    require_kernels("rms_norm", x)
    from eagle_kernels.kernels import rms_norm as kernels

    normed, _, rstd = kernels.forward(x, None, weight, eps)
    return normed, rstd


@torch.library.custom_op("eagle_kernels::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(normed, summed, 1 / sqrt(mean(summed^2) + eps) of each row in float32)."""
    require_kernels("add_rms_norm", x)
    from eagle_kernels.kernels import rms_norm as kernels

    normed, summed, rstd = kernels.forward(x, residual, weight, eps)
    assert summed is not None
    return normed, summed, rstd


@torch.library.custom_op("eagle_kernels::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx, dweight) of rms_norm at x; grad_summed is a second gradient that reaches x directly and is added to dx."""
    from eagle_kernels.kernels import rms_norm as kernels

    return kernels.backward(grad, grad_summed, x, weight, rstd)


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    return normed, x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    normed = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
    return normed, x.new_empty(x.shape), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@_rms_norm_backward.register_fake
def _(grad: Tensor, grad_summed: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x = inputs[0] if len(output) == 2 else output[1]
    ctx.save_for_backward(x, inputs[-2], output[-1])
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)


def _gradients(grad: Tensor, grad_summed: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    if not launches(grad):
        return _rms_norm_backward(grad, grad_summed, x, weight, rstd)
    from eagle_kernels.kernels import rms_norm as kernels

    return kernels.backward(grad, grad_summed, x, weight, rstd)


def _rms_norm_autograd(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, Tensor | None, None]:
    if grad is None:
        return None, None, None
    x, weight, rstd = ctx.saved_tensors
    return *_gradients(grad, None, x, weight, rstd), None


def _add_rms_norm_autograd(
    ctx: Any, grad: Tensor | None, grad_summed: Tensor | None, _: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    if grad is None:
        return grad_summed, grad_summed, None, None
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = _gradients(grad, grad_summed, x, weight, rstd)
    return dx, dx, dweight, None


_run_rms_norm = with_short_way(_rms_norm, _save, _rms_norm_autograd)
_run_add_rms_norm = with_short_way(_add_rms_norm, _save, _add_rms_norm_autograd)
