"""LayerNorm over the last dimension, as in the SigLIP tower and the connector of Eagle 2.5.

The twin is torch's own layer_norm: bfloat16 and float16 are normalised and scaled in float32 and rounded once to x's dtype,
float32 and float64 stay as they are. No RMS variant here; see rms_norm.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import check_eps, check_float, check_same_device, check_same_dtype, check_shape


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
    return naive_layer_norm(x, weight, bias, eps)
