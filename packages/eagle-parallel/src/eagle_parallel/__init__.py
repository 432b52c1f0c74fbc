"""Context parallelism for packed causal sequences: a mesh, a plan of who owns which tokens, sharding, exact attention, one loss.

Runs over gloo on CPU and over NCCL on GPUs; with one process everything is plain arithmetic. Needs torch only. `import
eagle_parallel` is light: a name loads its module on first use. `apply`, `revert` and `register` need transformers when called;
`DeepSpeedMesh` imports no DeepSpeed. The cost model is `eagle_parallel.planner`, which uses no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle_parallel.attention.compose import cp_attention
    from eagle_parallel.errors import NotYetSupported
    from eagle_parallel.exchange import gather
    from eagle_parallel.hf import apply, register, revert
    from eagle_parallel.kernels import Segments, Span, available
    from eagle_parallel.kernels.merge import merge_attention
    from eagle_parallel.kernels.truth import attention_backward, attention_forward, varlen_attention
    from eagle_parallel.layout import Piece
    from eagle_parallel.loss import global_loss, global_normaliser, normalise_loss
    from eagle_parallel.mesh import Mesh, init_mesh
    from eagle_parallel.mpu import DeepSpeedMesh
    from eagle_parallel.plan import ModelShape, Plan, explain, make_plan
    from eagle_parallel.shard import shard_batch
    from eagle_parallel.vision import dummy_unit, local_units, scatter_vision
    from eagle_parallel.vision_plan import VisionPlan, make_vision_plan, tower_cost

__version__ = "0.1.0"

_MODULES = {
    "attention.compose": ("cp_attention",),
    "errors": ("NotYetSupported",),
    "exchange": ("gather",),
    "hf": ("apply", "register", "revert"),
    "kernels": ("Segments", "Span", "available"),
    "kernels.merge": ("merge_attention",),
    "kernels.truth": ("attention_backward", "attention_forward", "varlen_attention"),
    "layout": ("Piece",),
    "loss": ("global_loss", "global_normaliser", "normalise_loss"),
    "mesh": ("Mesh", "init_mesh"),
    "mpu": ("DeepSpeedMesh",),
    "plan": ("ModelShape", "Plan", "explain", "make_plan"),
    "shard": ("shard_batch",),
    "vision": ("dummy_unit", "local_units", "scatter_vision"),
    "vision_plan": ("VisionPlan", "make_vision_plan", "tower_cost"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DeepSpeedMesh",
    "Mesh",
    "ModelShape",
    "NotYetSupported",
    "Piece",
    "Plan",
    "Segments",
    "Span",
    "VisionPlan",
    "apply",
    "attention_backward",
    "attention_forward",
    "available",
    "cp_attention",
    "dummy_unit",
    "explain",
    "gather",
    "global_loss",
    "global_normaliser",
    "init_mesh",
    "local_units",
    "make_plan",
    "make_vision_plan",
    "merge_attention",
    "normalise_loss",
    "register",
    "revert",
    "scatter_vision",
    "shard_batch",
    "tower_cost",
    "varlen_attention",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
