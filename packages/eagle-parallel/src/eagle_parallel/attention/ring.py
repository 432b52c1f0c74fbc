"""Ring attention: every rank's keys and values pass round the ring, and partial results are merged in float32.

The baseline that gathering is measured against; same interface, same layouts. Hops whose keys no query sees cost no kernel call.
In the backward pass dK and dV travel with their keys in float32 (float64 for float64) and arrive home after a full round.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.attention.job import Job, fuse
from eagle_parallel.attention.schedule import RingSchedule
from eagle_parallel.comm import ring_shift
from eagle_parallel.kernels.merge import merge_attention

RingJob = Job[RingSchedule]


def ring_attention(q: Tensor, k: Tensor, v: Tensor, job: RingJob) -> Tensor:
    """As `gather_kv_attention`, hop by hop. job.group is not None; the job has one stage."""
    return cast(Tensor, _Ring.apply(q, k, v, job))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, job: RingJob) -> Tensor:
        (stage,) = job.stages
        assert job.group is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros_like(q, dtype=wide, memory_format=torch.contiguous_format)
        lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=wide)
        here = _padded(fuse(k, v, stage), job.schedule.room)
        for hop, call in enumerate(job.schedule.calls):
            coming = ring_shift(here, job.group) if hop + 1 < len(job.schedule.calls) else None
            if not call.empty:
                keys = call.pack(here).chunk(2, dim=1)
                rows = slice(None) if call.queries is None else call.queries
                seen = q[rows]
                for block in stage.blocks:
                    heads = slice(block.query_start, block.query_end)
                    part, part_lse = job.attend(stage, block, call.segments, seen, *keys)
                    before = (out[rows, heads], lse[heads][:, rows])
                    merged = merge_attention(*before, part.to(wide), part_lse)
                    out[rows, heads] = merged[0]
                    lse[heads, rows] = merged[1]
            if coming is not None:
                here = coming.wait()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.job = job
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        job: RingJob = ctx.job
        (stage,) = job.stages
        assert job.group is not None
        dq = torch.zeros_like(q, dtype=lse.dtype, memory_format=torch.contiguous_format)
        here = _padded(fuse(k, v, stage), job.schedule.room)
        summed = torch.zeros_like(here, dtype=lse.dtype)
        summing = None
        for hop, call in enumerate(job.schedule.calls):
            coming = ring_shift(here, job.group) if hop + 1 < len(job.schedule.calls) else None
            partial = None
            if not call.empty and stage.blocks:
                k_seen, v_seen = call.pack(here).chunk(2, dim=1)
                rows = slice(None) if call.queries is None else call.queries
                grad_out, seen, seen_out, seen_lse = grads[0][rows], q[rows], out[rows], lse[:, rows]
                found = [
                    job.attend_backward(stage, block, call.segments, grad_out, seen, k_seen, v_seen, seen_out, seen_lse)
                    for block in stage.blocks
                ]
                for block, (part, _, _) in zip(stage.blocks, found, strict=True):
                    dq[rows, block.query_start : block.query_end] += part
                partial = call.unpack(torch.cat([dk for _, dk, _ in found] + [dv for _, _, dv in found], dim=1))
            if summing is not None:
                summed = summing.wait()
            if partial is not None:
                summed = summed + partial
            summing = ring_shift(summed, job.group)
            if coming is not None:
                here = coming.wait()
        assert summing is not None
        dk, dv = summing.wait()[: k.shape[0]].to(k.dtype).chunk(2, dim=1)
        return dq.to(q.dtype), dk, dv, None


def _padded(rows: Tensor, room: int) -> Tensor:
    """Rows with zeros after them, so that every rank's keys travel in one size."""
    padded = rows.new_zeros((room, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    return padded
