"""Triton kernel of the cross-entropy of one block of logits: losses, and gradients written over the logits.

A program owns a row. It reads the row once for the log-sum-exp and once more, mostly from the L2 cache, for the gradient that
replaces it. With the vocabulary sharded over ranks the two passes are two launches, and the ranks merge statistics between them.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import power_of_2
from eagle_kernels.ops.row_loss import LossTerms

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class CrossEntropyConfig:
    """Launch shape: lanes of a step, steps whose maximum is taken together, warps.

    Few rows are in flight at a time (one program a multiprocessor at 32 warps), so that they fit the L2 cache between the passes.
    """

    block: int
    unroll: int
    warps: int
    evictions: tuple[str, str] = ("evict_last", "evict_first")

    @staticmethod
    def of(columns: int) -> CrossEntropyConfig:
        """32 warps for vocabularies; small for small ones."""
        block = min(8192, power_of_2(max(16, columns)))
        return CrossEntropyConfig(block=block, unroll=4, warps=min(32, max(4, block // 256)))


@triton.jit
def _logits(pointer, inside, softcap, SOFTCAP: tl.constexpr, EVICTION: tl.constexpr):
    """(logits in float32 after the soft-cap, tanh of the soft-cap); -inf outside."""
    x = tl.load(pointer, mask=inside, other=float("-inf"), eviction_policy=EVICTION).to(tl.float32)
    tanh = x
    if SOFTCAP:
        tanh = 2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0
        x = tl.where(inside, softcap * tanh, float("-inf"))
    return x, tanh


@triton.jit
def _row_loss(
    logits_ptr,
    label_ptr,
    weight_ptr,
    loss_ptr,
    stats_ptr,
    columns,
    stride,
    first_column,
    vocab,
    ignore_index,
    softcap,
    z_loss,
    smoothing,
    HAS_WEIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SMOOTHING: tl.constexpr,
    FORM_STATS: tl.constexpr,
    SHARDED: tl.constexpr,
    FORM_GRADS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
    FIRST_EVICTION: tl.constexpr,
    SECOND_EVICTION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * stride
    label = tl.load(label_ptr + row)
    counts = label != ignore_index
    weight = 1.0
    z = tl.full((), z_loss, tl.float32)
    mine = label - first_column
    here = counts & (mine >= 0) & (mine < columns)
    mine = tl.where(here, mine, 0).to(tl.int32)
    step = tl.arange(0, UNROLL)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    cap = tl.full((), softcap, tl.float32)
    smooth = tl.full((), smoothing, tl.float32)
    if FORM_STATS:
        # Finite, so that no lane computes inf - inf; far below any logit.
        top = tl.full([BLOCK], -1.0e30, tl.float32)
        mass = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, columns, UNROLL * BLOCK):
            column = first + step
            inside = column < columns
            x, _ = _logits(base + column, inside, cap, SOFTCAP, FIRST_EVICTION)
            if SMOOTHING:
                total += tl.sum(tl.where(inside, x, 0.0), 0)
            higher = tl.maximum(top, tl.max(x, 0) * LOG2E)
            mass = mass * tl.exp2(top - higher) + tl.sum(tl.exp2(x * LOG2E - higher[None, :]), 0)
            top = higher
        peak = tl.max(top, 0)
        lse = (peak + tl.log2(tl.sum(mass * tl.exp2(top - peak), 0))) * LN2
        picked, _ = _logits(base + mine, here, cap, SOFTCAP, "")
        picked = tl.where(here, picked, 0.0)
        mean = tl.sum(total, 0)
        if SHARDED:
            tl.store(stats_ptr + row * 3, lse)
            tl.store(stats_ptr + row * 3 + 1, picked)
            tl.store(stats_ptr + row * 3 + 2, mean)
    else:
        lse = tl.load(stats_ptr + row * 3)
        picked = tl.load(stats_ptr + row * 3 + 1)
        mean = tl.load(stats_ptr + row * 3 + 2)
    if not (SHARDED and FORM_STATS):
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + row).to(tl.float32)
        weight = tl.where(counts, weight, 0.0)
        loss = lse - (1.0 - smooth) * picked - smooth * mean / vocab + z * lse * lse
        tl.store(loss_ptr + row, loss * weight)
    if FORM_GRADS:
        # Other threads of this program may still be reading what is about to be overwritten.
        tl.debug_barrier()
        mass_factor = weight * (1.0 + 2.0 * z * lse)
        shift = lse * LOG2E
        spread = weight * smooth / vocab
        for first in range(0, columns, UNROLL * BLOCK):
            column = first + step
            inside = column < columns
            x, tanh = _logits(base + column, inside, cap, SOFTCAP, SECOND_EVICTION)
            grad = mass_factor * tl.exp2(x * LOG2E - shift)
            if SMOOTHING:
                grad -= spread
            if SOFTCAP:
                grad *= 1.0 - tanh * tanh
            tl.store(base + column, grad.to(logits_ptr.dtype.element_ty), mask=inside, eviction_policy=SECOND_EVICTION)
        # The label's own entry once more, after every thread has written its share.
        tl.debug_barrier()
        grad = mass_factor * tl.exp2(picked * LOG2E - shift) - weight * (1.0 - smooth)
        if SMOOTHING:
            grad -= spread
        if SOFTCAP:
            grad *= 1.0 - (picked / cap) * (picked / cap)
        tl.store(base + mine, grad.to(logits_ptr.dtype.element_ty), mask=here)


def losses_and_gradients(
    logits: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    terms: LossTerms,
    grads: bool,
    config: CrossEntropyConfig | None = None,
) -> Tensor:
    """Weighted losses [rows] float32 of logits [rows, vocab]; with `grads` the logits are overwritten by their gradient."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _launch(logits, labels, row_weight, losses, losses, terms, True, False, grads, config)
    return losses


def shard_statistics(logits: Tensor, labels: Tensor, terms: LossTerms, config: CrossEntropyConfig | None = None) -> Tensor:
    """[rows, 3] float32 of one shard: log-sum-exp, the label's logit (0 where another shard has it), the sum of the logits."""
    stats = torch.empty((logits.shape[0], 3), dtype=torch.float32, device=logits.device)
    _launch(logits, labels, None, stats, stats, terms, True, True, False, config)
    return stats


def losses_and_gradients_from(
    logits: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    stats: Tensor,
    terms: LossTerms,
    grads: bool,
    config: CrossEntropyConfig | None = None,
) -> Tensor:
    """`losses_and_gradients` of one shard, given the statistics [rows, 3] of the whole vocabulary."""
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _launch(logits, labels, row_weight, losses, stats.contiguous(), terms, False, True, grads, config)
    return losses


def _launch(
    logits: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    losses: Tensor,
    stats: Tensor,
    terms: LossTerms,
    form_stats: bool,
    sharded: bool,
    grads: bool,
    config: CrossEntropyConfig | None,
) -> None:
    rows, columns = logits.shape
    if not rows:
        return
    config = config or CrossEntropyConfig.of(columns)
    _row_loss[(rows,)](
        *(logits, labels, row_weight, losses, stats, columns, logits.stride(0), terms.first_column, terms.vocab),
        *(terms.ignore_index, terms.softcap or 1.0, terms.z_loss, terms.label_smoothing),
        HAS_WEIGHT=row_weight is not None,
        SOFTCAP=terms.softcap is not None,
        SMOOTHING=terms.label_smoothing > 0,
        FORM_STATS=form_stats,
        SHARDED=sharded,
        FORM_GRADS=grads,
        UNROLL=config.unroll,
        BLOCK=config.block,
        FIRST_EVICTION=config.evictions[0],
        SECOND_EVICTION=config.evictions[1],
        num_warps=config.warps,
    )
