"""Fused operators for long-context training behind one public interface, each with a plain PyTorch twin that is its truth.

In this version the twin is also what runs, on every device. Needs torch only; transformers is recognised, never imported.
"""

from eagle_kernels.apply import apply, revert
from eagle_kernels.explain import Explanation, Row, explain
from eagle_kernels.modules import GELUTanhMLP, LayerNorm, RMSNorm, SwiGLUMLP
from eagle_kernels.ops.bias_gelu import bias_gelu_tanh
from eagle_kernels.ops.gated_unit import geglu, geglu_packed, swiglu, swiglu_packed
from eagle_kernels.ops.layer_norm import layer_norm
from eagle_kernels.ops.linear_cross_entropy import linear_cross_entropy
from eagle_kernels.ops.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.ops.rope import rope

__all__ = [
    "Explanation",
    "GELUTanhMLP",
    "LayerNorm",
    "RMSNorm",
    "Row",
    "SwiGLUMLP",
    "add_rms_norm",
    "apply",
    "bias_gelu_tanh",
    "explain",
    "geglu",
    "geglu_packed",
    "layer_norm",
    "linear_cross_entropy",
    "revert",
    "rms_norm",
    "rope",
    "swiglu",
    "swiglu_packed",
]
__version__ = "0.1.0"
