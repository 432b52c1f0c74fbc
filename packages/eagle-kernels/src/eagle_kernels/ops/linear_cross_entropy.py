"""The language-model head and its cross-entropy in one operator that never stores the logits of a pack.

Rows with ignored labels are never multiplied, at most chunk_rows rows of logits exist at a time, and the gradients are formed
chunk by chunk in the forward pass (three matrix products a row in all), with the weight's gradient summed in float32.
The result is a SUM of weighted losses: the caller divides by its normaliser, over ranks and accumulation steps alike.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_kernels.arguments import check_float, check_same_device, check_same_dtype, check_shape, compute_dtype
from eagle_kernels.implementation import launches, runs_triton
from eagle_kernels.ops.chunked_loss import Formed, Request, VocabShard, form, supervised_rows, weight_gradient
from eagle_kernels.ops.row_loss import LossTerms


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
    chunk_rows: int | None = None,
    vocab_shard: VocabShard | None = None,
) -> Tensor:
    """Sum over supervised rows of loss_weight * cross_entropy(hidden @ weight.T, label).

    With logits l (soft-capped as cap * tanh(l / cap) when asked), lse = logsumexp(l), vocabulary size V and smoothing s, a row
    costs lse - (1 - s) l[label] - s mean(l) + z_loss * lse^2. Square-root sample weighting (upstream sections 1.7 and A.4)
    is loss_weight = n^-1/2 on every supervised token of a sample with n of them, and a division by the sum of all loss_weight.

    Casting: the logits' product runs in hidden's dtype; softmax, losses and their sum are float32. The logits' gradient is
    rounded to hidden's dtype for the products, as autograd does; the weight's gradient is summed over chunks in float32 and
    rounded once (the plain PyTorch path also keeps the gradient of the logits in float32 there). float64 stays float64.

    Args:
        hidden: [..., hidden], bfloat16, float16, float32 or float64; tokens below means the product of its leading sizes.
        weight: [vocab, hidden], dtype and device of hidden; may be the tied embedding.
        shift_labels: hidden's leading shape, int64, already shifted: row i holds the label that row i predicts; ignore_index
            where none. On the CPU values are checked, on an accelerator they must be valid.
        loss_weight: like shift_labels, float, the weight of each row's loss; None means 1. Not differentiated.
        loss_rows: [supervised] int64, the rows (of the flattened tokens) whose label is not ignored, ascending, as the
            collator knows them on the host. Without it the rows are looked for in shift_labels, which costs one host
            synchronisation on an accelerator. On the CPU the list is compared with shift_labels; on an accelerator it is
            trusted, and a listed row whose label is ignored counts nothing.
        ignore_index: the label of rows without a loss.
        softcap: positive bound on the logits' magnitude, or None.
        z_loss: factor of lse^2, 0 for none.
        label_smoothing: in [0, 1), as in torch's cross_entropy.
        chunk_rows: most rows of logits held at a time, in hidden's dtype; None means 4096 with the kernels and 1024
            without them.
        vocab_shard: for a head whose rows are split over ranks; see `VocabShard`.

    Returns:
        A scalar, float32 (float64 for float64 inputs), attached to hidden and weight. It is 0, with zero gradients, when no
        row is supervised. Second derivatives are not offered.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a device, an option, a label outside the vocabulary or a wrong loss_rows; the message names it.
    """
    if chunk_rows is None:
        chunk_rows = 4096 if hidden.is_cuda else 1024
    hidden, shift_labels, loss_weight = _flat(hidden, shift_labels, loss_weight)
    _check(hidden, weight, shift_labels, loss_weight, chunk_rows)
    _check_options(softcap, z_loss, label_smoothing, loss_rows, vocab_shard, weight)
    grads = torch.is_grad_enabled()
    wants = (grads and hidden.requires_grad, grads and weight.requires_grad)
    if loss_rows is None and not torch.compiler.is_compiling():
        loss_rows = supervised_rows(shift_labels, ignore_index)
    several = loss_rows is None or loss_rows.shape[0] > chunk_rows
    if loss_rows is not None:
        loss_rows = loss_rows.to(hidden.device, non_blocking=True)
    options = (softcap, float(z_loss), float(label_smoothing), ignore_index, *wants, several, chunk_rows)
    if vocab_shard is not None:
        return cast(Tensor, _ShardedLoss.apply(hidden, weight, shift_labels, loss_weight, loss_rows, vocab_shard, options))
    return torch.ops.eagle_kernels.linear_cross_entropy(hidden, weight, shift_labels, loss_weight, loss_rows, *options)[0]


def _form(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    options: tuple[Any, ...],
    shard: VocabShard | None = None,
) -> Formed:
    """`form` after the checks that read values; runs outside autograd and autocast, whose casting is not the stated one."""
    softcap, z_loss, label_smoothing, ignore_index, *request = options
    found = supervised_rows(labels, ignore_index) if rows is None or labels.device.type == "cpu" else rows
    if labels.device.type == "cpu":
        _check_values(labels, rows, found, ignore_index, shard.size if shard else weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        terms = LossTerms(softcap, z_loss, label_smoothing, ignore_index)
        return form(hidden, weight, labels, row_weight, found, terms, Request(*request), shard)


@torch.library.custom_op("eagle_kernels::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    softcap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
    hidden_gradient: bool,
    weight_gradient: bool,
    several: bool,
    chunk_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, grad_hidden, grad_logits, grad_weight) as `Formed`; what was not asked for has no elements."""
    request = (hidden_gradient, weight_gradient, several, chunk_rows)
    formed = _form(hidden, weight, labels, row_weight, rows, (softcap, z_loss, label_smoothing, ignore_index, *request))
    rest = (formed.grad_hidden, formed.grad_logits, formed.grad_weight)
    return formed.loss, *(hidden.new_empty(0) if tensor is None else tensor for tensor in rest)  # pyright: ignore[reportReturnType]


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    softcap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
    hidden_gradient: bool,
    weight_gradient: bool,
    several: bool,
    chunk_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide, none = compute_dtype(hidden), hidden.new_empty(0)
    grad_hidden = hidden.new_empty(hidden.shape) if hidden_gradient else none
    grad_logits = grad_weight = none
    if weight_gradient and several:
        grad_weight = weight.new_empty(weight.shape, dtype=wide)
    elif weight_gradient:
        assert rows is not None
        shape = (rows.shape[0], weight.shape[0])
        grad_logits = hidden.new_empty(shape, dtype=hidden.dtype if runs_triton(hidden) else wide)
    return hidden.new_empty((), dtype=wide), grad_hidden, grad_logits, grad_weight


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, rows = inputs[0], inputs[1], inputs[4]
    _, grad_hidden, grad_logits, grad_weight = output
    ctx.mark_non_differentiable(grad_hidden, grad_logits, grad_weight)
    ctx.set_materialize_grads(False)
    ctx.hidden_gradient, ctx.weight_gradient, ctx.several = inputs[9:12]
    ctx.weight_dtype = weight.dtype
    deferred = ctx.weight_gradient and not ctx.several
    ctx.save_for_backward(grad_hidden, grad_logits, grad_weight, *((hidden, rows) if deferred else ()))


def _autograd(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13
    return (*_scaled(ctx, grad_loss), *(None,) * 11)


def _scaled(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(grad of hidden, grad of weight): what forward formed, times the incoming gradient, each in one pass."""
    grad_hidden, grad_logits, grad_weight, *operands = ctx.saved_tensors
    hidden = _scale_and_round(grad_hidden, grad_loss, grad_hidden.dtype) if ctx.hidden_gradient else None
    weight = None
    if ctx.weight_gradient and ctx.several:
        weight = _scale_and_round(grad_weight, grad_loss, ctx.weight_dtype)
    elif ctx.weight_gradient:
        inputs, rows = operands
        with torch.autocast(grad_loss.device.type, enabled=False):
            weight = weight_gradient(grad_logits, inputs, rows, grad_loss, ctx.weight_dtype)
    return hidden, weight


def _scale_and_round(total: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """total * factor, rounded once; eager, the wide product never exists in memory."""
    if not launches(factor) or not runs_triton(total):
        return (total * factor).to(dtype)
    from eagle_kernels.kernels.scale import scaled

    return scaled(total, factor, dtype)


_linear_cross_entropy.register_autograd(_autograd, setup_context=_setup_context)


class _ShardedLoss(torch.autograd.Function):
    """The same with the vocabulary sharded; a Function, since a registered operator cannot take a process group."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        row_weight: Tensor | None,
        rows: Tensor,
        shard: VocabShard,
        options: tuple[Any, ...],
    ) -> Tensor:
        formed = _form(hidden, weight, labels, row_weight, rows, options, shard)
        *_, ctx.hidden_gradient, ctx.weight_gradient, ctx.several, _ = options
        ctx.weight_dtype = weight.dtype
        deferred = ctx.weight_gradient and not ctx.several
        operands = (hidden, rows) if deferred else ()
        ctx.save_for_backward(formed.grad_hidden, formed.grad_logits, formed.grad_weight, *operands)
        return formed.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (*_scaled(ctx, grads[0]), *(None,) * 5)


def _flat(hidden: Tensor, shift_labels: Tensor, loss_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments with their leading dimensions joined, where all of them have the same ones."""
    if hidden.dim() <= 2 or shift_labels.shape != hidden.shape[:-1]:
        return hidden, shift_labels, loss_weight
    if loss_weight is not None and loss_weight.shape == shift_labels.shape:
        loss_weight = loss_weight.reshape(-1)
    return hidden.reshape(-1, hidden.shape[-1]), shift_labels.reshape(-1), loss_weight


def _check_values(labels: Tensor, rows: Tensor | None, found: Tensor, ignore_index: int, vocab: int) -> None:
    """On the CPU, where values cost nothing to read: labels inside the vocabulary, rows as the labels say."""
    if rows is not None and not torch.equal(rows, found):
        raise ValueError(
            f"linear_cross_entropy: loss_rows lists {rows.numel()} rows but shift_labels supervises {found.numel()}, or lists "
            f"others; pass the rows whose label is not {ignore_index}, ascending, or None."
        )
    valid = labels[found]
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= vocab):
        raise ValueError(
            f"linear_cross_entropy: shift_labels holds values from {int(valid.min())} to {int(valid.max())}, outside the "
            f"vocabulary of {vocab} rows in weight; resize the head or mark such rows with {ignore_index}."
        )


def _check_options(
    softcap: float | None,
    z_loss: float,
    label_smoothing: float,
    loss_rows: Tensor | None,
    shard: VocabShard | None,
    weight: Tensor,
) -> None:
    name = "linear_cross_entropy"
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap must be positive or None, got {softcap!r}.")
    if not z_loss >= 0:
        raise ValueError(f"{name}: z_loss must not be negative, got {z_loss!r}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1), got {label_smoothing!r}.")
    if loss_rows is not None and (not isinstance(loss_rows, Tensor) or loss_rows.dtype != torch.int64 or loss_rows.dim() != 1):
        raise TypeError(f"{name}: loss_rows must be a one-dimensional int64 tensor of row numbers, or None.")
    if shard is not None and not 0 <= shard.start <= shard.start + weight.shape[0] <= shard.size:
        raise ValueError(
            f"{name}: vocab_shard places the {weight.shape[0]} rows of weight at {shard.start} of a vocabulary of "
            f"{shard.size}; they do not fit."
        )


def _check(hidden: Tensor, weight: Tensor, shift_labels: Tensor, loss_weight: Tensor | None, chunk_rows: int) -> None:
    name = "linear_cross_entropy"
    check_float(name, hidden=hidden, weight=weight)
    if hidden.dim() != 2:
        raise ValueError(
            f"{name}: hidden has shape {list(hidden.shape)}, expected [..., hidden] with the leading shape of shift_labels, "
            f"{list(shift_labels.shape)}."
        )
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
