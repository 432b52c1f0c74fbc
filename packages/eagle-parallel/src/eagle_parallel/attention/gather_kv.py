"""Attention by gathering the keys and values that a rank's queries see, some KV heads at a time.

While one stage of heads attends, the next one is on its way; at most two are in memory. Every query sees all its keys in one
kernel call, so nothing is merged. Keys that came in one stage are few and are kept for the backward pass; of more, only this
rank's own are, and backward gathers again, in stages of its own, for there a step's memory is decided. Partial dK and dV travel
to their owners in the input's dtype, where they are summed in float32 (float64 for float64) in the order of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.attention.job import Job, Stage
from eagle_parallel.attention.key_rows import halves, joined
from eagle_parallel.attention.schedule import GatherSchedule
from eagle_parallel.comm import Pending, exchange


@dataclass(frozen=True)
class GatherJob(Job[GatherSchedule]):
    """A job of this algorithm; `stages` are those of the forward pass."""

    backward_stages: tuple[Stage, ...]

    @property
    def moves(self) -> bool:
        """Whether any rank of the ring receives anything."""
        return self.group is not None and self.schedule.widest > 0

    @property
    def keeps(self) -> bool:
        """Whether the keys of the forward pass are kept for the backward pass."""
        return len(self.stages) == len(self.backward_stages) == 1

    @property
    def one_call(self) -> bool:
        """Whether one kernel call on the tensors as they are is all there is to do."""
        return (
            self.keeps
            and len(self.stages[0].blocks) == 1
            and not self.moves
            and self.schedule.keys.as_they_lie
            and self.schedule.segments.queries > 0
        )


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
        kept = k, v
        coming = _start_gather(k, v, job, job.stages, 0)
        for place, stage in enumerate(job.stages):
            keys, coming = _arrived(k, v, job, stage, coming), None
            coming = _start_gather(k, v, job, job.stages, place + 1)
            if job.keeps:
                kept = keys
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
        ctx.save_for_backward(q, *kept, out, lse)
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
            whole = job.backward_stages[0]
            exact = job.attend_backward(whole, whole.blocks[0], segments, grads[0], q, k, v, out, lse)
            return *(grad.to(q.dtype) for grad in exact), None
        # Joined at the end, when what the kernel needs to work with is free again.
        dq: list[Tensor] = []
        grads_of_keys: list[tuple[Tensor, Tensor]] = []
        returning: _Returning | None = None
        coming = None if job.keeps else _start_gather(k, v, job, job.backward_stages, 0)
        for place, stage in enumerate(job.backward_stages):
            if job.keeps:
                keys = k, v
            else:
                keys, coming = _arrived(k, v, job, stage, coming), None
                coming = _start_gather(k, v, job, job.backward_stages, place + 1)
            found: list[tuple[Tensor, Tensor]] = []
            for block in stage.blocks if segments.queries else ():
                part, dk, dv = job.attend_backward(stage, block, segments, grads[0], q, *keys, out, lse)
                dq.append(part.to(q.dtype))
                found.append((dk, dv))
                del part, dk, dv
            del keys
            if returning is not None:
                grads_of_keys.append(returning.finish())
            returning = _Returning.start(q, stage, found, job)
            del found
        if returning is not None:
            grads_of_keys.append(returning.finish())
        dk, dv = (joined(parts) for parts in zip(*grads_of_keys, strict=True))
        return joined(dq) if dq else _empty_like(q), dk, dv, None


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _start_gather(k: Tensor, v: Tensor, job: GatherJob, stages: tuple[Stage, ...], place: int) -> Pending | None:
    """The received rows of a stage, K and V heads side by side, on their way; None where nothing moves anywhere."""
    schedule = job.schedule
    if place >= len(stages) or job.group is None or not job.moves:
        return None
    heads = slice(stages[place].kv_start, stages[place].kv_end)
    width = 2 * (heads.stop - heads.start)
    sent, received = (k.new_empty((sum(rows), width, k.shape[2])) for rows in (schedule.sent, schedule.received))
    schedule.keys.send.into(halves(sent), (k[:, heads], v[:, heads]))
    return exchange(sent, schedule.sent, received, schedule.received, job.group)


def _arrived(k: Tensor, v: Tensor, job: GatherJob, stage: Stage, coming: Pending | None) -> tuple[Tensor, Tensor]:
    """The stage's K and V in segment order."""
    heads, rows = slice(stage.kv_start, stage.kv_end), job.schedule.keys
    own = k[:, heads], v[:, heads]
    received = None if coming is None else halves(coming.wait())
    if rows.as_they_lie:
        return own
    packed = halves(k.new_empty((rows.packed, 2 * own[0].shape[1], k.shape[2])))
    rows.pack.into(packed, own, received)
    return packed


@dataclass
class _Returning:
    """dK and dV of a stage: the parts that other ranks own are on their way, and theirs of our rows."""

    shape: tuple[int, int, int]  # of dK and dV: own rows, heads of the stage, head_dim
    like: Tensor
    parts: tuple[Tensor, Tensor] | None  # of packed rows
    pending: Pending | None
    job: GatherJob

    @classmethod
    def start(cls, q: Tensor, stage: Stage, found: list[tuple[Tensor, Tensor]], job: GatherJob) -> _Returning:
        """Sum this rank's contributions to what others own, and send them; q is this rank's and tells rows, size and dtype."""
        schedule, width = job.schedule, stage.kv_end - stage.kv_start
        shape = (q.shape[0], width, q.shape[2])
        parts = (joined([dk for dk, _ in found]), joined([dv for _, dv in found])) if found else None
        if job.group is None or not job.moves:
            return cls(shape, q, parts, None, job)
        back, arriving = (q.new_empty((sum(rows), 2 * width, q.shape[2])) for rows in (schedule.received, schedule.sent))
        if parts is not None:
            schedule.keys.back.into(halves(back), parts)
        return cls(shape, q, parts, exchange(back, schedule.received, arriving, schedule.sent, job.group), job)

    def finish(self) -> tuple[Tensor, Tensor]:
        """dK and dV: this rank's own contributions, then those of other ranks in the order of ranks."""
        arrived = None if self.pending is None else halves(self.pending.wait())
        if self.parts is None:
            return self.like.new_zeros(self.shape), self.like.new_zeros(self.shape)
        grads = self.like.new_empty(self.shape), self.like.new_empty(self.shape)
        self.job.schedule.keys.own.into(grads, self.parts, arrived)
        return grads
