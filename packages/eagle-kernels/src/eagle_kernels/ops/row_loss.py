"""Cross-entropy of given logits in plain PyTorch, with its gradient: the truth of the Triton kernel and the path without one.

Statistics and gradient are two steps, so that ranks that hold shards of the vocabulary can merge their statistics in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """What a row's loss is made of besides its logits; `first_column` and `vocab` place a shard in the whole vocabulary."""

    softcap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100
    first_column: int = 0
    vocab: int = 0


def statistics(logits: Tensor, labels: Tensor, terms: LossTerms) -> Tensor:
    """[rows, 3]: log-sum-exp, the label's logit (0 where it is ignored or in another shard), the sum of the capped logits."""
    capped = logits if terms.softcap is None else torch.tanh(logits / terms.softcap) * terms.softcap
    here, column = _own(labels, logits.shape[-1], terms)
    picked = capped.gather(-1, column[:, None]).squeeze(-1) * here
    return torch.stack((capped.logsumexp(-1), picked, capped.sum(-1)), dim=-1)


def losses_and_gradients(
    logits: Tensor, labels: Tensor, row_weight: Tensor | None, stats: Tensor, terms: LossTerms, grads: bool
) -> Tensor:
    """Weighted losses [rows]; with `grads` the logits [rows, vocab] are overwritten by their gradient."""
    lse, picked, total = stats.unbind(-1)
    smoothing = terms.label_smoothing
    counts = (labels != terms.ignore_index).to(logits.dtype)
    scale = counts if row_weight is None else counts * row_weight
    losses = lse - (1 - smoothing) * picked - smoothing * total / terms.vocab + terms.z_loss * lse.square()
    if grads:
        slope = None
        if terms.softcap is not None:
            tanh = logits.div_(terms.softcap).tanh_()
            slope = 1 - tanh.square()
            logits.mul_(terms.softcap)
        logits.sub_(lse[:, None]).exp_()
        logits.mul_((1 + 2 * terms.z_loss * lse)[:, None]).sub_(smoothing / terms.vocab)
        here, column = _own(labels, logits.shape[-1], terms)
        logits.scatter_add_(-1, column[:, None], ((smoothing - 1) * here.to(logits.dtype))[:, None])
        if slope is not None:
            logits.mul_(slope)
        logits.mul_(scale[:, None])
    return losses * scale


def _own(labels: Tensor, columns: int, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """(whether the label is in this shard, its column there or 0)."""
    column = labels - terms.first_column
    here = (labels != terms.ignore_index) & (column >= 0) & (column < columns)
    return here, column.where(here, 0)
