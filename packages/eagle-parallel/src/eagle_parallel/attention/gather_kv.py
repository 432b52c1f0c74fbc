"""Attention by gathering the keys and values that a rank's queries see, some KV heads at a time.

While one stage of heads attends, the next one is on its way; at most two are in memory. Every query sees all its keys in one
kernel call, so nothing is merged. What is saved for the backward pass is local: it gathers again, and partial dK and dV travel to
their owners in the input's dtype, where they are summed in float32 (float64 for float64) in the order of ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.attention.job import Job, Stage, fuse
from eagle_parallel.attention.schedule import GatherSchedule
from eagle_parallel.comm import Pending, exchange

GatherJob = Job[GatherSchedule]


def gather_kv_attention(q: Tensor, k: Tensor, v: Tensor, job: GatherJob) -> Tensor:
    """[ring_tokens, query_heads, head_dim] for this rank's queries and heads. Collective over job.group. Differentiable.

    Args:
        q: [ring_tokens, query_heads, head_dim].
        k: [ring_tokens, kv_heads, head_dim].
        v: shaped like k.
        job: schedule, stages and kernel.
    """
    return cast(Tensor, _GatherKV.apply(q, k, v, job))


class _GatherKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, job: GatherJob) -> Tensor:
        call = job.schedule.call
        out = lse = None
        coming = _start_gather(k, v, job, 0)
        for place, stage in enumerate(job.stages):
            keys, coming = _arrived(k, v, job, stage, coming), None
            coming = _start_gather(k, v, job, place + 1)
            for block in stage.blocks if not call.empty else ():
                found = job.attend(stage, block, call, q, *keys)
                if block.query_end - block.query_start == q.shape[1]:
                    out, lse = found
                    continue
                if out is None or lse is None:
                    out, lse = _empty_like(q), found[1].new_empty((q.shape[1], q.shape[0]))
                heads = slice(block.query_start, block.query_end)
                out[:, heads], lse[heads] = found
            del keys
        if out is None or lse is None:
            out, lse = _empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=_wide(q))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.job = job
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        job: GatherJob = ctx.job
        call = job.schedule.call
        dq, dk, dv = None, _empty_like(k), _empty_like(v)
        returning: tuple[Stage, Tensor, Pending | None] | None = None
        coming = _start_gather(k, v, job, 0)
        for place, stage in enumerate(job.stages):
            keys, coming = _arrived(k, v, job, stage, coming), None
            coming = _start_gather(k, v, job, place + 1)
            found = []
            for block in stage.blocks if not call.empty else ():
                partial = job.attend_backward(stage, block, call, grads[0], q, *keys, out, lse)
                found.append(partial[1:])
                if block.query_end - block.query_start == q.shape[1]:
                    dq = partial[0].to(q.dtype)
                    continue
                dq = _empty_like(q) if dq is None else dq
                dq[:, block.query_start : block.query_end] = partial[0]
            del keys
            if returning:
                _finish_return(dk, dv, job, *returning)
            returning = (stage, *_start_return(k, job, stage, found))
        if returning:
            _finish_return(dk, dv, job, *returning)
        return _empty_like(q) if dq is None else dq, dk, dv, None


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _start_gather(k: Tensor, v: Tensor, job: GatherJob, place: int) -> tuple[Tensor, Pending] | None:
    """A stage's buffer of this rank's rows and the received ones, and the handle of the latter; None where nothing moves."""
    schedule = job.schedule
    if place >= len(job.stages) or job.group is None or not schedule.widest:
        return None
    own = fuse(k, v, job.stages[place])
    rows = own.new_empty((schedule.call.key_rows, *own.shape[1:]))
    rows[: schedule.rows] = own
    sent = own.index_select(0, schedule.sent_index)
    return rows, exchange(sent, schedule.sent, rows[schedule.rows :], schedule.received, job.group)


def _arrived(k: Tensor, v: Tensor, job: GatherJob, stage: Stage, coming: tuple[Tensor, Pending] | None) -> tuple[Tensor, Tensor]:
    """The stage's K and V in segment order."""
    if coming is None:
        heads = slice(stage.kv_start, stage.kv_end)
        return job.schedule.call.pack(k[:, heads]), job.schedule.call.pack(v[:, heads])
    rows, pending = coming
    pending.wait()
    packed = job.schedule.call.pack(rows)
    width = stage.kv_end - stage.kv_start
    return packed[:, :width], packed[:, width:]


def _start_return(k: Tensor, job: GatherJob, stage: Stage, found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Pending | None]:
    """This rank's own part of a stage's dK and dV, wide if there is a sum, and the handle of the parts from other ranks."""
    schedule = job.schedule
    if found:
        rows = torch.cat([dk for dk, _ in found] + [dv for _, dv in found], dim=1)
    else:
        rows = k.new_zeros((schedule.call.segments.keys, 2 * (stage.kv_end - stage.kv_start), k.shape[2]))
    moved = job.group is not None and schedule.widest
    if moved or schedule.call.keys is not None:
        rows = schedule.call.unpack(rows)
    own = rows[: schedule.rows]
    if job.group is None or not moved:
        return own, None
    sent = rows[schedule.rows :].to(k.dtype)
    received = sent.new_empty((sum(schedule.sent), *sent.shape[1:]))
    return own, exchange(sent, schedule.received, received, schedule.sent, job.group)


def _finish_return(dk: Tensor, dv: Tensor, job: GatherJob, stage: Stage, own: Tensor, pending: Pending | None) -> None:
    """Sum the parts in the order of ranks; a rank's rows are distinct, so each addition is exact in order."""
    if pending is not None:
        counts = list(job.schedule.sent)
        parts = zip(job.schedule.sent_index.split(counts), pending.wait().split(counts), strict=True)
        for index, part in parts:
            if index.numel():
                own.index_add_(0, index, part.to(own.dtype))
    width = stage.kv_end - stage.kv_start
    dk[:, stage.kv_start : stage.kv_end] = own[:, :width]
    dv[:, stage.kv_start : stage.kv_end] = own[:, width:]
