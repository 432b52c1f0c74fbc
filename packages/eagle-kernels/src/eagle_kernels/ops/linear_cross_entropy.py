"""The language-model head and its cross-entropy in one operator that never stores the logits of a pack.

Rows with ignored labels are never multiplied, at most chunk_rows rows of logits exist at a time, and the gradients are formed
chunk by chunk in the forward pass (three matrix products a row in all), with the weight's gradient summed in float32.
The result is a SUM of weighted losses: the caller divides by its normaliser, over ranks and accumulation steps alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape, compute_dtype


class LossTerms(NamedTuple):
    """The optional terms of the loss: soft-cap on logits, z-loss factor, label smoothing."""

    softcap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def naive_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weight: Tensor | None, rows: Tensor, terms: LossTerms
) -> Tensor:
    """The truth of `linear_cross_entropy`: plain autograd over all supervised rows at once, no checks."""
    wide = compute_dtype(hidden)
    logits = F.linear(hidden.index_select(0, rows), weight).to(wide)
    if terms.softcap is not None:
        logits = terms.softcap * torch.tanh(logits / terms.softcap)
    losses = F.cross_entropy(logits, labels.index_select(0, rows), reduction="none", label_smoothing=terms.label_smoothing)
    losses = losses + terms.z_loss * logits.logsumexp(-1).square()
    if loss_weight is not None:
        losses = losses * loss_weight.index_select(0, rows).to(wide)
    return losses.sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    shift_labels: Tensor,
    *,
    loss_weight: Tensor | None = None,
    loss_rows: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_rows: int = 1024,
) -> Tensor:
    """Sum over supervised rows of loss_weight * cross_entropy(hidden @ weight.T, label).

    With logits l (soft-capped as cap * tanh(l / cap) when asked), lse = logsumexp(l), vocabulary size V and smoothing s, a row
    costs lse - (1 - s) l[label] - s mean(l) + z_loss * lse^2. Square-root sample weighting (upstream sections 1.7 and A.4)
    is loss_weight = n^-1/2 on every supervised token of a sample with n of them, and a division by the sum of all loss_weight.

    Casting: the logits' product runs in hidden's dtype and is widened to float32 before anything else; the logits' gradient is
    rounded to hidden's dtype for the product with weight, and stays float32 for the product with hidden, whose sum over
    chunks is kept in float32 and rounded once. float64 stays float64 throughout.

    Args:
        hidden: [tokens, hidden], bfloat16, float16, float32 or float64.
        weight: [vocab, hidden], dtype and device of hidden; may be the tied embedding.
        shift_labels: [tokens] int64, already shifted: row i holds the label that row i predicts; ignore_index where none.
        loss_weight: [tokens] float, the weight of each row's loss, any float dtype; None means 1. Not differentiated.
        loss_rows: [supervised] int64, the rows whose label is not ignored, ascending, as the collator knows them on the
            host. Without it the rows are looked for in shift_labels, which costs one host synchronisation on an accelerator.
            On the CPU the list is compared with shift_labels; on an accelerator it is trusted, and a listed row whose
            label is ignored counts nothing.
        ignore_index: the label of rows without a loss.
        softcap: positive bound on the logits' magnitude, or None.
        z_loss: factor of lse^2, 0 for none.
        label_smoothing: in [0, 1), as in torch's cross_entropy.
        chunk_rows: rows of logits held at a time; two float32 buffers [chunk_rows, vocab] (four with softcap) are the peak.

    Returns:
        A scalar, float32 (float64 for float64 inputs), attached to hidden and weight. It is 0, with zero gradients, when no
        row is supervised. Second derivatives are not offered.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device, an option, a label outside the vocabulary or a wrong loss_rows; the message names it.
    """
    _check(hidden, weight, shift_labels, loss_weight, chunk_rows)
    terms = _terms(softcap, z_loss, label_smoothing)
    rows = _supervised_rows(shift_labels, loss_rows, ignore_index)
    labels = shift_labels.index_select(0, rows)
    row_weight = None if loss_weight is None else loss_weight.index_select(0, rows).to(compute_dtype(hidden))
    if labels.device.type == "cpu":
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= weight.shape[0]):
            raise ValueError(
                f"linear_cross_entropy: shift_labels holds values from {int(labels.min())} to {int(labels.max())}, outside "
                f"the vocabulary of {weight.shape[0]} rows in weight; resize the head or mark such rows with {ignore_index}."
            )
    elif loss_rows is not None:
        labels, row_weight = without_ignored(labels, row_weight, ignore_index, compute_dtype(hidden))
    grads = torch.is_grad_enabled()
    wants = (grads and hidden.requires_grad, grads and weight.requires_grad)
    # Autocast would recast the products of a function whose casting is stated above.
    with torch.autocast(hidden.device.type, enabled=False):
        return cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, labels, row_weight, rows, terms, chunk_rows, wants))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of supervised rows; backward only scales what forward formed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        row_weight: Tensor | None,
        rows: Tensor,
        terms: LossTerms,
        chunk_rows: int,
        wants: tuple[bool, bool],
    ) -> Tensor:
        wide = compute_dtype(hidden)
        loss = hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.zeros_like(hidden) if wants[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if wants[1] else None
        for begin in range(0, rows.numel(), chunk_rows):
            chunk = rows[begin : begin + chunk_rows]
            x = hidden.index_select(0, chunk)
            logits = F.linear(x, weight).to(wide)
            share = None if row_weight is None else row_weight[begin : begin + chunk_rows]
            part, grad_logits = _loss_and_grad(logits, labels[begin : begin + chunk_rows], share, terms, any(wants))
            loss += part
            if grad_hidden is not None and grad_logits is not None:
                grad_hidden.index_copy_(0, chunk, grad_logits.to(hidden.dtype) @ weight)
            if grad_weight is not None and grad_logits is not None:
                grad_weight.addmm_(grad_logits.t(), x.to(wide))
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_output,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_output.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_output).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _loss_and_grad(
    logits: Tensor, labels: Tensor, row_weight: Tensor | None, terms: LossTerms, wants_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Weighted loss of one chunk and its gradient by the uncapped logits. Overwrites `logits` [rows, vocab]."""
    slope = None
    if terms.softcap is not None:
        tanh = logits.div_(terms.softcap).tanh_()
        slope = 1 - tanh.square() if wants_grad else None
        logits = tanh * terms.softcap
    smoothing, vocab = terms.label_smoothing, logits.shape[-1]
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, labels[:, None]).squeeze(-1)
    losses = lse - (1 - smoothing) * picked + terms.z_loss * lse.square()
    if smoothing:
        losses = losses - smoothing * logits.mean(-1)
    total = losses.sum() if row_weight is None else (losses * row_weight).sum()
    if not wants_grad:
        return total, None
    grad = logits.sub_(lse[:, None]).exp_()
    if terms.z_loss:
        grad.mul_((1 + 2 * terms.z_loss * lse)[:, None])
    if smoothing:
        grad.sub_(smoothing / vocab)
    grad.scatter_add_(-1, labels[:, None], torch.full_like(lse, smoothing - 1)[:, None])
    if slope is not None:
        grad.mul_(slope)
    if row_weight is not None:
        grad.mul_(row_weight[:, None])
    return total, grad


def without_ignored(labels: Tensor, row_weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(labels, row_weight) in which rows that should not have been listed weigh 0 and have a valid label; no value is read."""
    kept = labels != ignore_index
    return labels.where(kept, 0), kept.to(dtype) if row_weight is None else row_weight * kept


def _terms(softcap: float | None, z_loss: float, label_smoothing: float) -> LossTerms:
    if softcap is not None and not softcap > 0:
        raise ValueError(f"linear_cross_entropy: softcap must be positive or None, got {softcap!r}.")
    if not z_loss >= 0:
        raise ValueError(f"linear_cross_entropy: z_loss must not be negative, got {z_loss!r}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"linear_cross_entropy: label_smoothing must be in [0, 1), got {label_smoothing!r}.")
    return LossTerms(softcap, z_loss, label_smoothing)


def _supervised_rows(shift_labels: Tensor, loss_rows: Tensor | None, ignore_index: int) -> Tensor:
    if loss_rows is None:
        return (shift_labels != ignore_index).nonzero().squeeze(-1)
    if not isinstance(loss_rows, Tensor) or loss_rows.dtype != torch.int64 or loss_rows.dim() != 1:
        raise TypeError("linear_cross_entropy: loss_rows must be a one-dimensional int64 tensor of row numbers, or None.")
    if loss_rows.device.type == "cpu" and shift_labels.device.type == "cpu":
        expected = (shift_labels != ignore_index).nonzero().squeeze(-1)
        if not torch.equal(loss_rows, expected):
            raise ValueError(
                f"linear_cross_entropy: loss_rows lists {loss_rows.numel()} rows but shift_labels supervises "
                f"{expected.numel()}, or lists others; pass the rows whose label is not {ignore_index}, ascending, or None."
            )
    return loss_rows.to(shift_labels.device, non_blocking=True)


def _check(hidden: Tensor, weight: Tensor, shift_labels: Tensor, loss_weight: Tensor | None, chunk_rows: int) -> None:
    name = "linear_cross_entropy"
    check_float(name, hidden=hidden, weight=weight)
    if hidden.dim() != 2:
        raise ValueError(f"{name}: hidden has shape {list(hidden.shape)}, expected [tokens, hidden]; flatten the batch first.")
    tokens, width = hidden.shape
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(
            f"{name}: weight has shape {list(weight.shape)}, expected [vocab, {width}] because hidden has shape "
            f"{list(hidden.shape)}; a partitioned weight must be gathered first."
        )
    check_same_dtype(name, "hidden", hidden.dtype, weight=weight)
    check_same_device(name, "hidden", hidden.device, weight=weight, shift_labels=shift_labels)
    if shift_labels.dtype != torch.int64:
        raise TypeError(f"{name}: shift_labels is {shift_labels.dtype}, expected int64.")
    check_shape(name, (tokens,), f"because hidden has {tokens} rows", shift_labels=shift_labels)
    if loss_weight is not None:
        check_float(name, loss_weight=loss_weight)
        check_shape(name, (tokens,), f"because hidden has {tokens} rows", loss_weight=loss_weight)
        check_same_device(name, "hidden", hidden.device, loss_weight=loss_weight)
        if loss_weight.requires_grad:
            raise ValueError(f"{name}: loss_weight requires grad, but it is data here; pass loss_weight.detach().")
    if not isinstance(chunk_rows, int) or chunk_rows < 1:
        raise ValueError(f"{name}: chunk_rows must be a positive integer, got {chunk_rows!r}.")
