"""The loss of packed batches: a weighted sum of token cross-entropies that never makes logits of a whole pack.

It promises a sum and nothing more. The normaliser spans an optimiser step (all ranks, all accumulation steps), so it
belongs to the trainer. Where eagle-kernels is installed its chunked operator does the work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, linear

IGNORE_INDEX = -100


def weighted_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    shift_labels: torch.Tensor,
    *,
    loss_weight: torch.Tensor | None = None,
    loss_rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over supervised rows of `loss_weight * cross entropy`, through the best operator installed.

    Args:
        hidden: [tokens, hidden], before the language model's head.
        weight: [vocabulary, hidden], of the head.
        shift_labels: int64 [tokens], the id that follows each token, -100 where none is supervised.
        loss_weight: float [tokens]; None weighs every row 1.
        loss_rows: int64 [rows], the supervised rows, where the caller knows them on the host; spares a device sync.

    Returns:
        Scalar in float32, or float64 for float64 `hidden`; zero, but still part of the graph, without supervised rows.
    """
    if shift_labels.ndim != 1 or shift_labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"shift_labels has shape {tuple(shift_labels.shape)} but there are {hidden.shape[0]} tokens; give one label per "
            "token, already shifted, with -100 at the end of each document"
        )
    if loss_weight is not None and loss_weight.shape != shift_labels.shape:
        raise ValueError(
            f"loss_weight has shape {tuple(loss_weight.shape)} and shift_labels {tuple(shift_labels.shape)}; "
            "give one weight per label"
        )
    operator = _kernel() or supervised_rows_cross_entropy
    # Autocast leaves the last norm's output in another type than the head's weight, which a fused operator refuses.
    return operator(hidden.to(weight.dtype), weight, shift_labels, loss_weight=loss_weight, loss_rows=loss_rows)


def supervised_rows_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    shift_labels: torch.Tensor,
    *,
    loss_weight: torch.Tensor | None = None,
    loss_rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """`weighted_cross_entropy` in plain PyTorch: logits of the supervised rows only, cross entropy in float32 at least."""
    rows = loss_rows if loss_rows is not None else (shift_labels != IGNORE_INDEX).nonzero().squeeze(1)
    rows = rows.to(hidden.device)
    logits = linear(hidden[rows], weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = cross_entropy(logits, shift_labels[rows], ignore_index=IGNORE_INDEX, reduction="none")
    return losses.sum() if loss_weight is None else (losses * loss_weight[rows].to(losses.dtype)).sum()


def _kernel() -> Callable[..., torch.Tensor] | None:
    try:
        from eagle_kernels import linear_cross_entropy
    except ImportError:
        return None
    return linear_cross_entropy
