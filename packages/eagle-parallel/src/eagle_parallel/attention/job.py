"""What every ring-level algorithm shares: the constant part of a call, its stages of KV heads, the kernel on a block of heads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_parallel.kernels.base import Kernel
from eagle_parallel.kernels.segments import Segments
from eagle_parallel.layout import HeadBlock, HeadShare, uniform_blocks
from eagle_parallel.planner.stages import stage_borders

Schedule = TypeVar("Schedule")


@dataclass(frozen=True)
class Stage:
    """KV heads [kv_start, kv_end) of this rank, moved together, and the uniform blocks of query heads that attend with them."""

    kv_start: int
    kv_end: int
    blocks: tuple[HeadBlock, ...]


@dataclass(frozen=True)
class Job(Generic[Schedule]):
    """Everything but the tensors. Stages follow each other; every rank of the ring has as many."""

    schedule: Schedule
    stages: tuple[Stage, ...]
    group: dist.ProcessGroup | None
    kernel: Kernel
    scale: float

    def attend(
        self, stage: Stage, block: HeadBlock, segments: Segments, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(out, lse) of a block of heads; q has the segments' queries and all heads, k and v their keys, the stage's heads."""
        keys = slice(block.kv_start - stage.kv_start, block.kv_end - stage.kv_start)
        q = q[:, block.query_start : block.query_end]
        return self.kernel.forward(q, k[:, keys], v[:, keys], segments, self.scale)

    def attend_backward(
        self,
        stage: Stage,
        block: HeadBlock,
        segments: Segments,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv) of a block of heads from the complete out and lse of the segments' queries."""
        keys = slice(block.kv_start - stage.kv_start, block.kv_end - stage.kv_start)
        heads = slice(block.query_start, block.query_end)
        return self.kernel.backward(
            grad_out[:, heads], q[:, heads], k[:, keys], v[:, keys], out[:, heads], lse[heads], segments, self.scale
        )


def stages(share: HeadShare, group: int, count: int) -> tuple[Stage, ...]:
    """A rank's KV heads in `count` stages, `planner.stages.stage_borders`; a stage may be empty."""
    borders = stage_borders(share.kv_heads, count)
    return tuple(Stage(start, end, tuple(uniform_blocks(share, group, start, end))) for start, end in pairwise(borders))


def fuse(k: Tensor, v: Tensor, stage: Stage) -> Tensor:
    """The stage's K and V heads side by side: [rows, 2 * heads, head_dim], as they travel."""
    return torch.cat((k[:, stage.kv_start : stage.kv_end], v[:, stage.kv_start : stage.kv_end]), dim=1)
