"""Bias addition and tanh GELU, the element-wise part of the SigLIP MLP between its two products.

bfloat16 and float16 are added and activated in float32 and rounded once; float64 stays float64. SigLIP's own module rounds after
the bias instead of before it, so in the short formats the two differ in the last place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape, compute_dtype


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
    return naive_bias_gelu_tanh(x, bias)
