"""Fused operators for long-context training behind one public interface, each with a plain PyTorch twin that is its truth.

Triton kernels run on a GPU, the twins everywhere else; `explain` says which. transformers is recognised, never imported.
"""

from eagle_kernels.apply import apply, revert
from eagle_kernels.checkpointing import Checkpointer, CheckpointPolicy, HostMemoryExceeded, checkpoint_layers, stop_checkpointing
from eagle_kernels.explain import Explanation, Row, explain
from eagle_kernels.implementation import use_implementation
from eagle_kernels.modules import GELUTanhMLP, LayerNorm, RMSNorm, SwiGLUMLP
from eagle_kernels.ops.bias_gelu import bias_gelu_tanh
from eagle_kernels.ops.chunked_loss import VocabShard
from eagle_kernels.ops.gated_unit import geglu, geglu_packed, swiglu, swiglu_packed
from eagle_kernels.ops.layer_norm import layer_norm
from eagle_kernels.ops.linear_cross_entropy import linear_cross_entropy
from eagle_kernels.ops.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.ops.rope import rope, rope_from_positions
from eagle_kernels.tiled_mlp import tiled_swiglu_mlp

__all__ = [
    "CheckpointPolicy",
    "Checkpointer",
    "Explanation",
    "GELUTanhMLP",
    "HostMemoryExceeded",
    "LayerNorm",
    "RMSNorm",
    "Row",
    "SwiGLUMLP",
    "VocabShard",
    "add_rms_norm",
    "apply",
    "bias_gelu_tanh",
    "checkpoint_layers",
    "explain",
    "geglu",
    "geglu_packed",
    "layer_norm",
    "linear_cross_entropy",
    "revert",
    "rms_norm",
    "rope",
    "rope_from_positions",
    "stop_checkpointing",
    "swiglu",
    "swiglu_packed",
    "tiled_swiglu_mlp",
    "use_implementation",
]
__version__ = "0.1.0"
