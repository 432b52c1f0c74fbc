"""Triton kernel of rotary position embedding in the half-rotation layout; backward is the same kernel with the other sign.

One program turns every head of a few tokens, so the cosines and sines of a token are read or computed once. They come from given
tables, or are formed in float32 inside from position ids and inverse frequencies.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import ceil_div, power_of_2


@dataclass(frozen=True)
class RopeConfig:
    """Launch shape: tokens of a program, heads turned at a time, warps, programs that share the query heads of a token."""

    tokens: int
    heads: int
    warps: int
    groups: int = 1

    @staticmethod
    @cache
    def of(heads: int, half: int, tables: bool, tokens_outermost: bool) -> RopeConfig:
        """For 64 pairs: eight neighbouring heads of a token where heads are adjacent in memory, else tokens of one head.

        Cosines and sines that are read, not computed, are read once for many tokens and all heads.
        """
        tile = max(1, 512 // power_of_2(half))
        if tokens_outermost:
            return RopeConfig(tokens=1, heads=min(tile, power_of_2(heads)), warps=4)
        return RopeConfig(8 * tile, 1, warps=8) if tables else RopeConfig(2 * tile, 1, warps=8, groups=4)


@triton.jit
def _turn(
    x_ptr,
    y_ptr,
    batch,
    token,
    first_head,
    heads,
    all_heads,
    tokens,
    x_batch,
    x_head,
    x_token,
    cos_first,
    sin_first,
    cos_second,
    sin_second,
    TOKENS_OUTERMOST: tl.constexpr,
    HALF: tl.constexpr,
    KEPT: tl.constexpr,
    BACKWARD: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
):
    pair = tl.arange(0, PAIRS)[None, None, :]
    kind = y_ptr.dtype.element_ty
    for first in range(first_head, heads, HEADS):
        head = (first + tl.arange(0, HEADS)[None, :, None]).to(tl.int64)
        rows = (head < heads) & (token[:, None, None] < tokens)
        inside = rows & (pair < HALF)
        source = x_ptr + batch * x_batch + head * x_head + token[:, None, None] * x_token
        if TOKENS_OUTERMOST:
            row = (batch * tokens + token[:, None, None]) * all_heads + head
        else:
            row = (batch * all_heads + head) * tokens + token[:, None, None]
        target = y_ptr + row * (2 * HALF + KEPT)
        a = tl.load(source + pair, mask=inside).to(tl.float32)
        b = tl.load(source + HALF + pair, mask=inside).to(tl.float32)
        if BACKWARD:
            turned_a = a * cos_first + b * sin_second
            turned_b = b * cos_second - a * sin_first
        else:
            turned_a = a * cos_first - b * sin_first
            turned_b = b * cos_second + a * sin_second
        tl.store(target + pair, turned_a.to(kind), mask=inside)
        tl.store(target + HALF + pair, turned_b.to(kind), mask=inside)
        if KEPT > 0:
            rest = tl.arange(0, KEPT_BLOCK)[None, None, :]
            tl.store(
                target + 2 * HALF + rest,
                tl.load(source + 2 * HALF + rest, mask=rows & (rest < KEPT)),
                mask=rows & (rest < KEPT),
            )


@triton.jit
def _rope(
    q_ptr,
    k_ptr,
    q_out_ptr,
    k_out_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    inv_freq_ptr,
    q_heads,
    k_heads,
    tokens,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    table_batch,
    position_axis,
    position_batch,
    position_token,
    FROM_POSITIONS: tl.constexpr,
    SCALING: tl.constexpr,
    SECTION_ONE: tl.constexpr,
    SECTION_TWO: tl.constexpr,
    Q_TOKENS_OUTERMOST: tl.constexpr,
    K_TOKENS_OUTERMOST: tl.constexpr,
    HALF: tl.constexpr,
    KEPT: tl.constexpr,
    BACKWARD: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    KEPT_BLOCK: tl.constexpr,
):
    token_blocks = tl.cdiv(tokens, TOKENS)
    batch = (tl.program_id(0) // token_blocks).to(tl.int64)
    token = (tl.program_id(0) % token_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, PAIRS)[None, :]
    inside = (token[:, None] < tokens) & (pair < HALF)
    if FROM_POSITIONS:
        inv_freq = tl.load(inv_freq_ptr + pair, mask=pair < HALF, other=0.0)
        place = position_ptr + batch * position_batch + token[:, None] * position_token
        known = token[:, None] < tokens
        position = tl.load(place, mask=known, other=0).to(tl.float32)
        if SECTION_TWO >= 0:
            height = tl.load(place + position_axis, mask=known, other=0).to(tl.float32)
            width = tl.load(place + 2 * position_axis, mask=known, other=0).to(tl.float32)
            position = tl.where(pair < SECTION_ONE, position, tl.where(pair < SECTION_TWO, height, width))
        angle = position * inv_freq
        factor = tl.full((), SCALING, tl.float32)
        cos_first = (tl.cos(angle) * factor)[:, None, :]
        sin_first = (tl.sin(angle) * factor)[:, None, :]
        cos_second = cos_first
        sin_second = sin_first
    else:
        table = batch * table_batch + token[:, None] * (2 * HALF) + pair
        cos_first = tl.load(cos_ptr + table, mask=inside).to(tl.float32)[:, None, :]
        sin_first = tl.load(sin_ptr + table, mask=inside).to(tl.float32)[:, None, :]
        cos_second = tl.load(cos_ptr + table + HALF, mask=inside).to(tl.float32)[:, None, :]
        sin_second = tl.load(sin_ptr + table + HALF, mask=inside).to(tl.float32)[:, None, :]
    share = tl.cdiv(tl.cdiv(q_heads, tl.num_programs(1)), HEADS) * HEADS
    _turn(
        q_ptr,
        q_out_ptr,
        batch,
        token,
        share * tl.program_id(1),
        tl.minimum(q_heads, share * (tl.program_id(1) + 1)),
        q_heads,
        tokens,
        q_batch,
        q_head,
        q_token,
        cos_first,
        sin_first,
        cos_second,
        sin_second,
        Q_TOKENS_OUTERMOST,
        HALF,
        KEPT,
        BACKWARD,
        TOKENS,
        HEADS,
        PAIRS,
        KEPT_BLOCK,
    )
    # The last group turns the keys as well.
    _turn(
        k_ptr,
        k_out_ptr,
        batch,
        token,
        tl.where(tl.program_id(1) == tl.num_programs(1) - 1, 0, k_heads),
        k_heads,
        k_heads,
        tokens,
        k_batch,
        k_head,
        k_token,
        cos_first,
        sin_first,
        cos_second,
        sin_second,
        K_TOKENS_OUTERMOST,
        HALF,
        KEPT,
        BACKWARD,
        TOKENS,
        HEADS,
        PAIRS,
        KEPT_BLOCK,
    )


class Tables(NamedTuple):
    """Given cosines and sines, [batch or 1, tokens, rotary_dim] each, both halves."""

    cos: Tensor
    sin: Tensor


class Positions(NamedTuple):
    """position_ids [batch or 1, tokens] or [3, batch or 1, tokens] with sections; inv_freq [rotary_dim / 2] float32."""

    position_ids: Tensor
    inv_freq: Tensor
    scaling: float
    sections: tuple[int, int, int] | None


def rotate(
    q: Tensor, k: Tensor, source: Tables | Positions, backward: bool = False, config: RopeConfig | None = None
) -> tuple[Tensor, Tensor]:
    """(q, k) turned by their angles, or back by them; new tensors laid out in memory as `like` describes.

    The kernel takes microseconds, so what the host does here is kept short.
    """
    q = q if q.stride(-1) == 1 else q.contiguous()
    k = k if k.stride(-1) == 1 else k.contiguous()
    batch, heads, tokens, head_dim = q.shape
    k_heads = k.shape[1]
    q_batch, q_head, q_token, _ = q.stride()
    k_batch, k_head, k_token, _ = k.stride()
    q_by_token = heads > 1 and tokens > 1 and q_head < q_token
    k_by_token = k_heads > 1 and tokens > 1 and k_head < k_token
    q_out, k_out = like(q, q_by_token), like(k, k_by_token)
    cos = sin = positions = inv_freq = sections = None
    table_batch, strides, scaling = 0, (0, 0, 0), 1.0
    from_positions = isinstance(source, Positions)
    if isinstance(source, Tables):
        # The kernel indexes both tables alike.
        cos, sin = source.cos.contiguous(), source.sin.contiguous()
        each, _, rotary_dim = cos.shape
        half = rotary_dim // 2
        table_batch = 0 if each == 1 else tokens * rotary_dim
    else:
        positions, inv_freq, scaling, sections = source
        inv_freq = inv_freq.contiguous()
        half = inv_freq.shape[0]
        each = 0 if positions.shape[-2] == 1 else positions.stride(-2)
        strides = (positions.stride(0) if sections else 0, each, positions.stride(-1))
    kept = head_dim - 2 * half
    config = config or RopeConfig.of(heads, half, not from_positions, q_by_token)
    if batch and tokens and head_dim and heads + k_heads:
        _rope[(batch * ceil_div(tokens, config.tokens), config.groups)](
            *(q, k, q_out, k_out, cos, sin, positions, inv_freq, heads, k_heads, tokens),
            *(q_batch, q_head, q_token, k_batch, k_head, k_token, table_batch, *strides),
            FROM_POSITIONS=from_positions,
            SCALING=scaling,
            SECTION_ONE=sections[0] if sections else 0,
            SECTION_TWO=sections[0] + sections[1] if sections else -1,  # -1: one axis for all pairs
            Q_TOKENS_OUTERMOST=q_by_token,
            K_TOKENS_OUTERMOST=k_by_token,
            HALF=half,
            KEPT=kept,
            BACKWARD=backward,
            TOKENS=config.tokens,
            HEADS=config.heads,
            PAIRS=power_of_2(half),
            KEPT_BLOCK=power_of_2(kept),
            num_warps=config.warps,
        )
    return q_out, k_out


def like(x: Tensor, tokens_outermost: bool) -> Tensor:
    """An uninitialised [batch, heads, tokens, head_dim] tensor without gaps, the heads of a token next to each other or not."""
    if not tokens_outermost:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    batch, heads, tokens, head_dim = x.shape
    return torch.empty((batch, tokens, heads, head_dim), dtype=x.dtype, device=x.device).transpose(1, 2)
