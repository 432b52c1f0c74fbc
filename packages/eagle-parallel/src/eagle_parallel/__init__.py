"""Context parallelism for packed causal sequences: a mesh, a plan of who owns which tokens, sharding, exact attention, one loss.

Plain PyTorch over torch.distributed (gloo or NCCL) in this version; with one process everything is plain arithmetic.
Needs torch only.
"""

from eagle_parallel.attention_truth import Span, attention_backward, attention_forward, varlen_attention
from eagle_parallel.cp_attention import cp_attention
from eagle_parallel.errors import NotYetSupported
from eagle_parallel.exchange import gather
from eagle_parallel.layout import Piece
from eagle_parallel.loss import global_loss, global_normaliser, normalise_loss
from eagle_parallel.merge import merge_attention
from eagle_parallel.mesh import Mesh, init_mesh
from eagle_parallel.plan import ModelShape, Plan, make_plan
from eagle_parallel.shard import shard_batch

__all__ = [
    "Mesh",
    "ModelShape",
    "NotYetSupported",
    "Piece",
    "Plan",
    "Span",
    "attention_backward",
    "attention_forward",
    "cp_attention",
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
