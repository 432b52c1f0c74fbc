"""The loop of linear + cross-entropy over chunks of supervised rows: logits, their gradient over them, and three matrix products.

The logits of one chunk are all that ever exists. The head's gradient is summed over chunks in float32 inside the matrix products;
with a single chunk its product waits for backward, where the incoming gradient is folded into the small operand for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_kernels.arguments import compute_dtype
from eagle_kernels.implementation import runs_triton
from eagle_kernels.ops import row_loss
from eagle_kernels.ops.products import add_product, chunks, wave_chunks
from eagle_kernels.ops.row_loss import LossTerms


@dataclass(frozen=True)
class VocabShard:
    """A head split over ranks by rows: this rank's weight holds the tokens from `start` of a vocabulary of `size` tokens.

    Every rank of `group` calls with the same hidden states, labels and weights, and gets the same loss and hidden gradient.
    """

    group: dist.ProcessGroup
    start: int
    size: int


@dataclass(frozen=True)
class Request:
    """What to form besides the loss; `several` keeps the head's gradient in a float32 sum over chunks of `chunk_rows`."""

    hidden_gradient: bool
    weight_gradient: bool
    several: bool
    chunk_rows: int


@dataclass(frozen=True)
class Formed:
    """The loss and what backward needs: grad_logits for a single chunk, grad_weight (float32 sum) for several."""

    loss: Tensor
    grad_hidden: Tensor | None
    grad_logits: Tensor | None
    grad_weight: Tensor | None


def form(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    rows: Tensor,
    terms: LossTerms,
    request: Request,
    shard: VocabShard | None = None,
) -> Formed:
    """Loss and gradients over the listed rows.

    Args:
        hidden: [tokens, hidden].
        weight: [vocab, hidden], of this shard.
        labels: [tokens] int64.
        row_weight: [tokens] or None.
        rows: [supervised] int64 ascending on hidden's device; tokens many means all of them.
        terms: options of the loss.
        request: what to form.
        shard: where weight's rows stand when the vocabulary is sharded.
    """
    terms = replace(terms, first_column=shard.start if shard else 0, vocab=shard.size if shard else weight.shape[0])
    fused, wide = runs_triton(hidden), compute_dtype(hidden)
    count, tokens = rows.shape[0], hidden.shape[0]
    everything = count == tokens
    labels = labels if everything else labels.index_select(0, rows)
    if row_weight is not None:
        row_weight = (row_weight if everything else row_weight.index_select(0, rows)).to(wide)
    losses = torch.empty(count, dtype=wide, device=hidden.device)
    grads = request.hidden_gradient or request.weight_gradient
    grad_hidden = grad_logits = grad_weight = None
    if request.hidden_gradient:
        # Rows that are not listed stay zero.
        grad_hidden = torch.empty_like(hidden) if everything else torch.zeros_like(hidden)
    if request.weight_gradient and request.several and not count:
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
    if request.several and hidden.is_cuda:
        processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
        plan = list(wave_chunks(count, request.chunk_rows, hidden.shape[1], processors))
    else:
        plan = list(chunks(count, request.chunk_rows if request.several else max(1, count)))
    largest = max((end - begin for begin, end in plan), default=0)
    buffer = torch.empty((largest, weight.shape[0]), dtype=hidden.dtype, device=hidden.device)
    for begin, end in plan:
        chosen = slice(begin, end)
        x = hidden[chosen] if everything else hidden.index_select(0, rows[chosen])
        share = None if row_weight is None else row_weight[chosen]
        logits = torch.mm(x, weight.t(), out=buffer[: end - begin])
        if not fused:
            logits = logits.to(wide)
        losses[chosen] = _losses(logits, labels[chosen], share, terms, grads, fused, shard)
        if grad_hidden is not None:
            if everything:
                torch.mm(logits.to(hidden.dtype), weight, out=grad_hidden[chosen])
            else:
                grad_hidden.index_copy_(0, rows[chosen], logits.to(hidden.dtype) @ weight)
        if request.weight_gradient and request.several:
            grad_weight = add_product(grad_weight, logits.t(), x)
        elif request.weight_gradient:
            grad_logits = logits
    if request.weight_gradient and not request.several and grad_logits is None:
        grad_logits = buffer.to(hidden.dtype if fused else wide)
    if shard is not None and grad_hidden is not None:
        dist.all_reduce(grad_hidden, group=shard.group)
    return Formed(losses.sum(), grad_hidden, grad_logits, grad_weight)


def weight_gradient(grad_logits: Tensor, hidden: Tensor, rows: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The head's gradient of a single chunk; grad_loss is folded into the small operand."""
    x = hidden if rows.shape[0] == hidden.shape[0] else hidden.index_select(0, rows)
    x = (x.to(grad_loss.dtype) * grad_loss).to(grad_logits.dtype)
    return torch.mm(grad_logits.t(), x).to(dtype)


def _losses(
    logits: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    terms: LossTerms,
    grads: bool,
    fused: bool,
    shard: VocabShard | None,
) -> Tensor:
    """Losses of one chunk; the logits become their gradient when `grads`."""
    if not fused:
        stats = _merged(row_loss.statistics(logits, labels, terms), shard)
        return row_loss.losses_and_gradients(logits, labels, row_weight, stats, terms, grads)
    from eagle_kernels.kernels import cross_entropy as kernels

    if shard is None:
        return kernels.losses_and_gradients(logits, labels, row_weight, terms, grads)
    stats = _merged(kernels.shard_statistics(logits, labels, terms), shard)
    return kernels.losses_and_gradients_from(logits, labels, row_weight, stats, terms, grads)


def _merged(stats: Tensor, shard: VocabShard | None) -> Tensor:
    """Statistics [rows, 3] of the whole vocabulary from those of its shards; one collective."""
    if shard is None:
        return stats
    parts = [torch.empty_like(stats) for _ in range(shard.group.size())]
    dist.all_gather(parts, stats.contiguous(), group=shard.group)
    lse, picked, total = torch.stack(parts).unbind(-1)
    return torch.stack((lse.logsumexp(0), picked.sum(0), total.sum(0)), dim=-1)


def supervised_rows(labels: Tensor, ignore_index: int) -> Tensor:
    """The rows whose label is not ignored, ascending; finding them costs one host synchronisation on an accelerator."""
    return (labels != ignore_index).nonzero().squeeze(-1)
