"""RMSNorm over the last dimension, alone and fused with the residual addition before it.

The casting is that of the RMSNorm modules of transformers' Qwen2, Qwen3 and Llama ("llama" casting in upstream section 5):
statistics and the normalised value in float32, rounded to x's dtype, then multiplied by weight under PyTorch's promotion.
The one departure: float64 inputs stay in float64, where those modules would drop to float32.
"""

from __future__ import annotations

from torch import Tensor

from eagle_kernels.arguments import check_eps, check_float, check_same_device, check_shape, compute_dtype


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
    return naive_rms_norm(x, weight, eps)


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
    return naive_add_rms_norm(x, residual, weight, eps)


def _check(operator: str, x: Tensor, weight: Tensor, eps: float) -> None:
    check_float(operator, x=x, weight=weight)
    check_same_device(operator, "x", x.device, weight=weight)
    if x.dim() == 0:
        raise ValueError(f"{operator}: x is a scalar; it needs a last dimension of hidden size.")
    check_shape(operator, (x.shape[-1],), f"because x has shape {list(x.shape)}", weight=weight)
    check_eps(operator, eps)
