"""Attention by gathering the keys and values that a rank's queries see, some KV heads at a time.

While one stage of heads attends, the next one is on its way; at most two are in memory. Every query sees all its keys in one
kernel call, so nothing is merged. What is saved for the backward pass is local: it gathers again, and partial dK and dV travel to
their owners in the input's dtype, where they are summed in float32 (float64 for float64) in the order of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.attention.job import Job, Stage
from eagle_parallel.attention.schedule import GatherSchedule
from eagle_parallel.comm import Pending, exchange


class GatherJob(Job[GatherSchedule]):
    """A job of this algorithm."""

    @property
    def moves(self) -> bool:
        """Whether any rank of the ring receives anything."""
        return self.group is not None and self.schedule.widest > 0

    @property
    def one_call(self) -> bool:
        """Whether one kernel call on the tensors as they are is all there is to do."""
        whole = len(self.stages) == 1 and len(self.stages[0].blocks) == 1
        return whole and not self.moves and self.schedule.keys.as_they_lie and self.schedule.segments.queries > 0


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
        segments = job.schedule.segments
        out = lse = None
        coming = _start_gather(k, v, job, 0)
        for place, stage in enumerate(job.stages):
            keys, coming = _arrived(k, v, job, stage, coming), None
            coming = _start_gather(k, v, job, place + 1)
            for block in stage.blocks if segments.queries else ():
                found = job.attend(stage, block, segments, q, *keys)
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
        segments = job.schedule.segments
        if job.one_call:
            # Nothing moves and nothing is cut: the kernel's own gradients are the answer.
            whole = job.stages[0]
            exact = job.attend_backward(whole, whole.blocks[0], segments, grads[0], q, k, v, out, lse)
            return *(grad.to(q.dtype) for grad in exact), None
        dq, dk, dv = None, _empty_like(k), _empty_like(v)
        returning: _Returning | None = None
        coming = _start_gather(k, v, job, 0)
        for place, stage in enumerate(job.stages):
            keys, coming = _arrived(k, v, job, stage, coming), None
            coming = _start_gather(k, v, job, place + 1)
            found: list[tuple[Tensor, Tensor]] = []
            for block in stage.blocks if segments.queries else ():
                part, *part_keys = job.attend_backward(stage, block, segments, grads[0], q, *keys, out, lse)
                found.append((part_keys[0], part_keys[1]))
                if block.query_end - block.query_start == q.shape[1]:
                    dq = part.to(q.dtype)
                    continue
                dq = _empty_like(q) if dq is None else dq
                dq[:, block.query_start : block.query_end] = part
            del keys
            heads = slice(stage.kv_start, stage.kv_end)
            if returning is not None:
                returning.finish()
            returning = _Returning.start(dk[:, heads], dv[:, heads], found, job)
        if returning is not None:
            returning.finish()
        return _empty_like(q) if dq is None else dq, dk, dv, None


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _joined(heads: list[Tensor]) -> Tensor:
    return heads[0] if len(heads) == 1 else torch.cat(heads, dim=1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _start_gather(k: Tensor, v: Tensor, job: GatherJob, place: int) -> Pending | None:
    """The received rows of a stage, K and V heads side by side, on their way; None where nothing moves anywhere."""
    schedule = job.schedule
    if place >= len(job.stages) or job.group is None or not job.moves:
        return None
    stage = job.stages[place]
    width = stage.kv_end - stage.kv_start
    sent, received = (k.new_empty((sum(rows), 2 * width, k.shape[2])) for rows in (schedule.sent, schedule.received))
    schedule.sending.into(sent[:, :width], k[:, stage.kv_start : stage.kv_end])
    schedule.sending.into(sent[:, width:], v[:, stage.kv_start : stage.kv_end])
    return exchange(sent, schedule.sent, received, schedule.received, job.group)


def _arrived(k: Tensor, v: Tensor, job: GatherJob, stage: Stage, coming: Pending | None) -> tuple[Tensor, Tensor]:
    """The stage's K and V in segment order."""
    heads, rows = slice(stage.kv_start, stage.kv_end), job.schedule.keys
    if rows.as_they_lie:
        if coming is not None:
            coming.wait()
        return k[:, heads], v[:, heads]
    packed = rows.pack((k[:, heads], v[:, heads]), coming)
    width = stage.kv_end - stage.kv_start
    return packed[:, :width], packed[:, width:]


@dataclass
class _Returning:
    """dK and dV of a stage: what needs no sum is in place, the parts of other ranks are on their way."""

    dk: Tensor  # [rows, heads of the stage, head_dim], written in place
    dv: Tensor
    total: Tensor | None
    pending: Pending | None
    job: GatherJob

    @classmethod
    def start(cls, dk: Tensor, dv: Tensor, found: list[tuple[Tensor, Tensor]], job: GatherJob) -> _Returning:
        """Put rows with one contribution in place, sum this rank's contributions to the others, and send what others own."""
        schedule, rows = job.schedule, job.schedule.keys
        width = dk.shape[1]
        back = dk.new_empty((sum(schedule.received), 2 * width, dk.shape[2]))
        total = None
        if found:
            parts = (_joined([dk for dk, _ in found]), _joined([dv for _, dv in found]))
            halves = (slice(None, width), slice(width, None))
            for target, half, part in zip((dk, dv), halves, parts, strict=True):
                rows.own_plain.into(target, part)
                rows.received_plain.into(back[:, half], part)
            if rows.cover.numel():
                total = torch.cat([rows.sum(part) for part in parts], dim=1)
                rows.received_summed.into(back, total)
        if job.group is None or not job.moves:
            return cls(dk, dv, total, None, job)
        arriving = dk.new_empty((sum(schedule.sent), 2 * width, dk.shape[2]))
        return cls(dk, dv, total, exchange(back, schedule.received, arriving, schedule.sent, job.group), job)

    def finish(self) -> None:
        """Add the parts of other ranks in the order of ranks; a rank's rows are distinct, so each sum has one order."""
        rows = self.job.schedule.keys
        arrived = None if self.pending is None else self.pending.wait()
        if self.total is None:
            return
        if arrived is not None:
            counts = list(self.job.schedule.sent)
            for places, part in zip(rows.arrivals.split(counts), arrived.split(counts), strict=True):
                if places.numel():
                    self.total.index_add_(0, places, part.to(self.total.dtype))
        width = self.dk.shape[1]
        rows.own_summed.into(self.dk, self.total[:, :width])
        rows.own_summed.into(self.dv, self.total[:, width:])
