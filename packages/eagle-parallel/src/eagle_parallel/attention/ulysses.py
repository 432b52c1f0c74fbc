"""Exchange tokens for heads between the ranks of a Ulysses group, for any head counts and any shares of tokens.

Before attention every rank has some tokens with all heads, after it all tokens of the group with some heads. q, k and v travel in
one all-to-all with uneven splits, the output in another. A KV head that several ranks need is sent to each of them once; in the
backward pass its partial gradients, in the input's dtype on the wire, are summed in float32 (float64 for float64) in the order of
ranks. The tokens come out in the order of ranks, which is the order of the ring rank's share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_parallel.comm import exchange
from eagle_parallel.layout import HeadShare


@dataclass(frozen=True)
class HeadExchange:
    """Who has which heads and how many tokens in a Ulysses group, by rank in the group."""

    shares: tuple[HeadShare, ...]
    tokens: tuple[int, ...]
    rank: int
    group: dist.ProcessGroup


def to_heads(q: Tensor, k: Tensor, v: Tensor, plan: HeadExchange) -> tuple[Tensor, Tensor, Tensor]:
    """[local_tokens, all heads, head_dim] to [tokens of the group, this rank's heads, head_dim], views of one buffer."""
    mine = plan.shares[plan.rank]
    fused = cast(Tensor, _ToHeads.apply(q, k, v, plan))
    return fused.split([mine.query_heads, mine.kv_heads, mine.kv_heads], dim=1)  # pyright: ignore[reportReturnType]


def to_tokens(out: Tensor, plan: HeadExchange) -> Tensor:
    """[tokens of the group, this rank's query heads, head_dim] to [local_tokens, all query heads, head_dim]."""
    return cast(Tensor, _ToTokens.apply(out, plan))


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: HeadExchange) -> Tensor:
        ctx.plan, ctx.kv_heads = plan, k.shape[1]
        parts = [(_queries(q, share), _keys(k, share), _keys(v, share)) for share in plan.shares]
        return _scatter_heads(parts, plan)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plan: HeadExchange = ctx.plan
        parts = _collect_heads(grads[0], [_width(share) for share in plan.shares], plan)
        dq = torch.cat([part[:, : share.query_heads] for part, share in zip(parts, plan.shares, strict=True)], dim=1)
        wide = torch.promote_types(dq.dtype, torch.float32)
        dk, dv = (dq.new_zeros((dq.shape[0], ctx.kv_heads, dq.shape[2]), dtype=wide) for _ in range(2))
        for part, share in zip(parts, plan.shares, strict=True):
            _keys(dk, share).add_(part[:, share.query_heads : share.query_heads + share.kv_heads])
            _keys(dv, share).add_(part[:, share.query_heads + share.kv_heads :])
        return dq, dk.to(dq.dtype), dv.to(dq.dtype), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, plan: HeadExchange) -> Tensor:
        ctx.plan = plan
        return torch.cat(_collect_heads(out, [share.query_heads for share in plan.shares], plan), dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plan: HeadExchange = ctx.plan
        return _scatter_heads([(_queries(grads[0], share),) for share in plan.shares], plan), None


def _scatter_heads(parts: Sequence[tuple[Tensor, ...]], plan: HeadExchange) -> Tensor:
    """For each rank the heads of this rank's tokens that it wants; gives [tokens of the group, this rank's heads, head_dim]."""
    like, tokens = parts[0][0], plan.tokens[plan.rank]
    widths = [sum(tensor.shape[1] for tensor in part) for part in parts]
    counts = [tokens * width * like.shape[2] for width in widths]
    sent = like.new_empty(sum(counts))
    for place, part, width in zip(sent.split(counts), parts, widths, strict=True):
        torch.cat(part, dim=1, out=place.view(tokens, width, like.shape[2]))
    received = like.new_empty((sum(plan.tokens), widths[plan.rank], like.shape[2]))
    row = widths[plan.rank] * like.shape[2]
    exchange(sent, counts, received.view(-1), [other * row for other in plan.tokens], plan.group).wait()
    return received


def _collect_heads(tensor: Tensor, widths: Sequence[int], plan: HeadExchange) -> list[Tensor]:
    """This rank's tokens with each rank's heads: [local_tokens, widths[rank], head_dim] by rank."""
    tokens, size = plan.tokens[plan.rank], tensor.shape[2]
    counts = [tokens * width * size for width in widths]
    received = tensor.new_empty(sum(counts))
    row = tensor.shape[1] * size
    exchange(tensor.contiguous().view(-1), [other * row for other in plan.tokens], received, counts, plan.group).wait()
    return [part.view(tokens, width, size) for part, width in zip(received.split(counts), widths, strict=True)]


def _width(share: HeadShare) -> int:
    return share.query_heads + 2 * share.kv_heads


def _queries(tensor: Tensor, share: HeadShare) -> Tensor:
    return tensor[:, share.query_start : share.query_end]


def _keys(tensor: Tensor, share: HeadShare) -> Tensor:
    return tensor[:, share.kv_start : share.kv_end]
