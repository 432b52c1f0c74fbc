"""Causal attention over packed documents in plain PyTorch: the truth that every faster path is compared with.

One small interface: forward gives (out, lse), backward needs only (out, lse) and the inputs, so a block of queries computed in
parts with one global lse has exact gradients. float64 stays float64, everything else is computed in float32 and rounded once.
Slow by design: it forms the scores in blocks of queries. Not for dropout, sliding windows or padding masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.kernels.segments import Segments, Span
from eagle_parallel.plan import make_plan

_QUERY_BLOCK = 512


def attention_forward(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention of the spans' queries.

    Args:
        q: [query_tokens, query_heads, head_dim].
        k: [key_tokens, kv_heads, head_dim]; query_heads is a multiple of kv_heads.
        v: shaped like k.
        spans: which queries see which keys; they do not overlap in queries.
        scale: factor on q k^T.

    Returns:
        out [query_tokens, query_heads, head_dim] in q's dtype and lse [query_heads, query_tokens], the natural logarithm of the
        sum of exponentials, in float32 (float64 for float64). A query that sees no key has out 0 and lse -inf.
    """
    wide = _wide(q)
    out = torch.zeros_like(q)
    lse = torch.full((q.shape[1], q.shape[0]), float("-inf"), dtype=wide, device=q.device)
    for rows, keys, hidden in _blocks(spans, q.device):
        scores = _scores(q[rows], k[keys], scale, hidden)
        block_lse = scores.logsumexp(-1)
        weights = _probabilities(scores, block_lse)
        out[rows] = torch.einsum("hgqk,khd->qhgd", weights, v[keys].to(wide)).flatten(1, 2).to(q.dtype)
        lse[:, rows] = block_lse.flatten(0, 1)
    return out, lse


def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Sequence[Span], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention_forward` from its results alone; out and lse may be those of a softmax over more keys.

    Args:
        grad_out: [query_tokens, query_heads, head_dim].
        q: as in the forward.
        k: as in the forward.
        v: as in the forward.
        out: the complete output of these queries.
        lse: the complete log-sum-exp of these queries, [query_heads, query_tokens].
        spans: as in the forward.
        scale: as in the forward.

    Returns:
        (dq, dk, dv) shaped like q, k, v in float32 (float64 for float64), so that partial sums lose nothing.
    """
    wide = _wide(q)
    dq, dk, dv = (torch.zeros_like(tensor, dtype=wide) for tensor in (q, k, v))
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    delta = (grad_out.to(wide) * out.to(wide)).sum(-1)
    for rows, keys, hidden in _blocks(spans, q.device):
        grad = grad_out[rows].to(wide).unflatten(1, (-1, groups))
        block_lse = lse[:, rows].unflatten(0, (-1, groups))
        weights = _probabilities(_scores(q[rows], k[keys], scale, hidden), block_lse)
        dv[keys] += torch.einsum("hgqk,qhgd->khd", weights, grad)
        slope = torch.einsum("qhgd,khd->hgqk", grad, v[keys].to(wide)) - delta[rows].T.unflatten(0, (-1, groups))[..., None]
        slope = weights * slope * scale
        dq[rows] = torch.einsum("hgqk,khd->qhgd", slope, k[keys].to(wide)).flatten(1, 2)
        dk[keys] += torch.einsum("hgqk,qhgd->khd", slope, q[rows].to(wide).unflatten(1, (-1, groups)))
    return dq, dk, dv


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Sequence[int] | Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Causal attention of a whole pack on one process: every document attends to itself only.

    Args:
        q: [tokens, query_heads, head_dim].
        k: [tokens, kv_heads, head_dim]; query_heads is a multiple of kv_heads.
        v: shaped like k.
        cu_seqlens: document borders on the host, [documents + 1], last equal to tokens.
        scale: factor on q k^T; head_dim ** -0.5 when None.

    Returns:
        (out, lse) as `attention_forward`; gradients flow through out, lse is a constant.

    Raises:
        ValueError: shapes or cu_seqlens do not fit.
        TypeError: dtypes differ or are not floating point.
    """
    borders = make_plan(cu_seqlens, 1).cu_seqlens
    check_heads(q, k, v)
    for name, tensor in (("q", q), ("k", k)):
        if tensor.shape[0] != borders[-1]:
            raise ValueError(f"{name} has {tensor.shape[0]} tokens but cu_seqlens ends at {borders[-1]}.")
    spans = [Span(start, end, start, end, 0) for start, end in pairwise(borders)]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return cast("tuple[Tensor, Tensor]", _VarlenAttention.apply(q, k, v, spans, scale))


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """ValueError or TypeError, naming the tensor, unless q, k, v are [tokens, heads, head_dim] of one dtype and fit."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [tokens, heads, head_dim] (no batch dimension).")
        if not tensor.is_floating_point() or tensor.dtype != q.dtype:
            raise TypeError(f"{name} is {tensor.dtype} but q is {q.dtype}; all three must be of one floating-point dtype.")
    if v.shape != k.shape:
        raise ValueError(f"v has shape {list(v.shape)} but k has {list(k.shape)}; they must agree.")
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"k has head_dim {k.shape[2]} but q has {q.shape[2]}.")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, which is not a multiple of the {k.shape[1]} heads of k (grouped queries).")


class TruthKernel:
    """The truth as a kernel: any device, any floating-point dtype; gradients come back in float32 (float64 for float64)."""

    name = "truth"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> tuple[Tensor, Tensor]:
        return attention_forward(q, k, v, segments.spans(), scale)

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return attention_backward(grad_out, q, k, v, out, lse, segments.spans(), scale)


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: list[Span], scale: float) -> tuple[Tensor, Tensor]:
        out, lse = attention_forward(q, k, v, spans, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans, ctx.scale = spans, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        found = attention_backward(grads[0], q, k, v, out, lse, ctx.spans, ctx.scale)
        return (*(grad.to(q.dtype) for grad in found), None, None)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _blocks(spans: Sequence[Span], device: torch.device) -> list[tuple[slice, slice, Tensor]]:
    """Query rows, key rows and mask of the hidden pairs [queries, keys], in blocks that stop at the last visible key."""
    blocks = []
    for query_start, query_end, key_start, key_end, first in spans:
        for start in range(query_start, query_end, _QUERY_BLOCK):
            end = min(start + _QUERY_BLOCK, query_end)
            position = first + start - query_start
            stop = min(key_end, key_start + position + end - start)
            if stop <= key_start:
                continue
            seen_until = torch.arange(position, position + end - start, device=device)
            hidden = torch.arange(stop - key_start, device=device) > seen_until[:, None]
            blocks.append((slice(start, end), slice(key_start, stop), hidden))
    return blocks


def _scores(q: Tensor, k: Tensor, scale: float, hidden: Tensor) -> Tensor:
    """[kv_heads, groups, queries, keys] scaled scores with -inf at hidden pairs."""
    wide = _wide(q)
    grouped = q.to(wide).unflatten(1, (k.shape[1], -1))
    return (torch.einsum("qhgd,khd->hgqk", grouped, k.to(wide)) * scale).masked_fill_(hidden, float("-inf"))


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), with 0 for queries that see nothing (both are -inf there)."""
    return (scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None]).exp()
