"""Context parallelism for packed causal sequences: a mesh, a plan of who owns which tokens, sharding, exact attention, one loss.

Runs over gloo on CPU and over NCCL on GPUs; with one process everything is plain arithmetic. Needs torch only.
"""

from eagle_parallel.cp_attention import cp_attention
from eagle_parallel.errors import NotYetSupported
from eagle_parallel.exchange import gather
from eagle_parallel.kernels import Segments, Span, available
from eagle_parallel.kernels.merge import merge_attention
from eagle_parallel.kernels.truth import attention_backward, attention_forward, varlen_attention
from eagle_parallel.layout import Piece
from eagle_parallel.loss import global_loss, global_normaliser, normalise_loss
from eagle_parallel.mesh import Mesh, init_mesh
from eagle_parallel.plan import ModelShape, Plan, explain, make_plan
from eagle_parallel.shard import shard_batch

__all__ = [
    "Mesh",
    "ModelShape",
    "NotYetSupported",
    "Piece",
    "Plan",
    "Segments",
    "Span",
    "attention_backward",
    "attention_forward",
    "available",
    "cp_attention",
    "explain",
    "gather",
    "global_loss",
    "global_normaliser",
    "init_mesh",
    "make_plan",
    "merge_attention",
    "normalise_loss",
    "shard_batch",
    "varlen_attention",
]
__version__ = "0.1.0"
