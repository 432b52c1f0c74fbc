"""Rotary position embedding in the half-rotation layout of Qwen2, Qwen3 and Llama, full or partial.

The arithmetic runs in the promoted dtype of the tensor and cos, and the result is rounded to the tensor's dtype: with cos and
sin of q's own dtype this is what transformers does bit for bit; with float32 cos and sin there is a single rounding.
`rope_from_positions` forms cos and sin itself, in float32 and with one rounding at the end. Not for GPT-J's interleaved layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device
from eagle_kernels.implementation import launches, require_kernels, runs_triton
from eagle_kernels.ops.eager import with_short_way

Sections = tuple[int, int, int]


def naive_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The truth of `rope`: plain PyTorch, no checks."""
    cos, sin = (table[None] if table.dim() == 2 else table for table in (cos, sin))
    cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def angles(position_ids: Tensor, inv_freq: Tensor, sections: Sections | None = None) -> Tensor:
    """position * inv_freq in inv_freq's dtype, [batch, tokens, rotary_dim / 2]; with sections each pair reads its own axis."""
    positions = position_ids.to(inv_freq.dtype)
    if sections is None:
        return (positions[None] if positions.dim() == 1 else positions)[..., None] * inv_freq
    axis = torch.repeat_interleave(torch.arange(3, device=inv_freq.device), torch.tensor(sections, device=inv_freq.device))
    return positions[axis].movedim(0, -1) * inv_freq


def naive_rope_from_positions(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    attention_scaling: float = 1.0,
    sections: Sections | None = None,
) -> tuple[Tensor, Tensor]:
    """The truth of `rope_from_positions`: plain PyTorch, no checks. cos and sin have inv_freq's dtype."""
    half = angles(position_ids, inv_freq, sections)
    full = torch.cat((half, half), dim=-1)
    return naive_rope(q, k, full.cos() * attention_scaling, full.sin() * attention_scaling)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary_dim = cos.shape[-1]
    rotated, kept = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = rotated.chunk(2, dim=-1)
    turned = (rotated * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first rotary_dim entries of every query and key head by the angle of its position.

    Entry i < rotary_dim / 2 is paired with entry i + rotary_dim / 2: (a, b) becomes
    (a cos_i - b sin_i, b cos_j + a sin_j) with j = i + rotary_dim / 2. Entries from rotary_dim on are returned unchanged.

    Args:
        q: [batch, heads, tokens, head_dim].
        k: [batch, kv_heads, tokens, head_dim]; kv_heads may differ from heads (grouped queries).
        cos: [batch, tokens, rotary_dim], [1, tokens, rotary_dim] or [tokens, rotary_dim]; rotary_dim is even and at
            most head_dim. Both halves are read, as transformers' rotary modules write them.
        sin: shaped like cos.

    Returns:
        (q, k) rotated, new tensors with the shapes and dtypes given. The kernel gives cos and sin no gradient.

    Raises:
        TypeError: an argument is not a float tensor.
        ValueError: shapes or devices do not fit; the message names the argument.
    """
    check_float("rope", q=q, k=k, cos=cos, sin=sin)
    check_same_device("rope", "q", q.device, k=k, cos=cos, sin=sin)
    batch, tokens, head_dim = _check_heads("rope", q, k)
    for name, table in (("cos", cos), ("sin", sin)):
        fits = table.dim() in (2, 3) and table.shape[-2] == tokens and (table.dim() == 2 or table.shape[0] in (1, batch))
        if not fits:
            raise ValueError(
                f"rope: {name} has shape {list(table.shape)}, expected [{batch} or 1, {tokens}, rotary_dim] or "
                f"[{tokens}, rotary_dim] because q has shape {list(q.shape)}."
            )
        if table.shape[-1] % 2 or table.shape[-1] > head_dim:
            raise ValueError(f"rope: {name} has rotary_dim {table.shape[-1]}, expected an even number of at most {head_dim}.")
    if cos.shape != sin.shape:
        raise ValueError(f"rope: sin has shape {list(sin.shape)} but cos has shape {list(cos.shape)}; they must agree.")
    if not runs_triton(q, k, cos, sin):
        return naive_rope(q, k, cos, sin)
    cos, sin = (table[None] if table.dim() == 2 else table for table in (cos, sin))
    return _run_rope(q, k, cos, sin, False)


def rope_from_positions(
    q: Tensor,
    k: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    *,
    attention_scaling: float = 1.0,
    sections: Sections | None = None,
) -> tuple[Tensor, Tensor]:
    """`rope` with the angle position * inv_freq[i] for pair i, whose cosine and sine never reach memory.

    Angles, cosines and sines are float32 (inv_freq's dtype in the twin) and the result is rounded once, where transformers rounds
    cos and sin to q's dtype first.

    Args:
        q: [batch, heads, tokens, head_dim].
        k: [batch, kv_heads, tokens, head_dim].
        position_ids: integer, [batch, tokens], [1, tokens] or [tokens]; with sections [3, batch or 1, tokens], the temporal,
            vertical and horizontal positions of multimodal RoPE.
        inv_freq: [rotary_dim / 2] float32 or float64, as the rotary modules of transformers hold it.
        attention_scaling: factor on cos and sin (YaRN's attention factor).
        sections: how many pairs follow each of the three axes, in order, as `mrope_section` of Qwen2-VL; their sum is
            rotary_dim / 2.

    Returns:
        (q, k) rotated, new tensors with the shapes and dtypes given. position_ids and inv_freq get no gradient.

    Raises:
        TypeError: q, k or inv_freq is not a float tensor, or position_ids is not an integer one.
        ValueError: shapes or devices do not fit; the message names the argument.
    """
    name = "rope_from_positions"
    check_float(name, q=q, k=k, inv_freq=inv_freq)
    check_same_device(name, "q", q.device, k=k, inv_freq=inv_freq, position_ids=position_ids)
    batch, tokens, head_dim = _check_heads(name, q, k)
    if position_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: position_ids is {position_ids.dtype}, expected int64 or int32.")
    if inv_freq.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: inv_freq is {inv_freq.dtype}, expected float32; a shorter format would bend long contexts.")
    if inv_freq.dim() != 1 or 2 * inv_freq.shape[0] > head_dim:
        raise ValueError(
            f"{name}: inv_freq has shape {list(inv_freq.shape)}, expected [rotary_dim / 2] of at most {head_dim // 2}."
        )
    if sections is not None and (len(sections) != 3 or sum(sections) != inv_freq.shape[0]):
        raise ValueError(
            f"{name}: sections {sections} must be three counts that sum to {inv_freq.shape[0]}, the length of inv_freq."
        )
    if position_ids.dim() == 1 and sections is None:
        position_ids = position_ids[None]
    lead = () if sections is None else (3,)
    if tuple(position_ids.shape) not in ((*lead, batch, tokens), (*lead, 1, tokens)):
        expected = f"[{'3, ' if sections else ''}{batch} or 1, {tokens}]"
        raise ValueError(
            f"{name}: position_ids has shape {list(position_ids.shape)}, expected {expected} because q has shape {list(q.shape)}."
        )
    if not runs_triton(q, k, inv_freq):
        return naive_rope_from_positions(q, k, position_ids, inv_freq, attention_scaling, sections)
    return _run_rope_from_positions(q, k, position_ids, inv_freq, float(attention_scaling), list(sections or ()), False)


def _check_heads(operator: str, q: Tensor, k: Tensor) -> tuple[int, int, int]:
    """(batch, tokens, head_dim) of q, after checking that k fits."""
    for name, tensor in (("q", q), ("k", k)):
        if tensor.dim() != 4:
            raise ValueError(f"{operator}: {name} has shape {list(tensor.shape)}, expected [batch, heads, tokens, head_dim].")
    batch, _, tokens, head_dim = q.shape
    if (k.shape[0], k.shape[2], k.shape[3]) != (batch, tokens, head_dim):
        raise ValueError(
            f"{operator}: k has shape {list(k.shape)}, expected [{batch}, kv_heads, {tokens}, {head_dim}] because q has shape "
            f"{list(q.shape)}."
        )
    return batch, tokens, head_dim


@torch.library.custom_op("eagle_kernels::rope", mutates_args=())
def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    require_kernels("rope", q)
    from eagle_kernels.kernels import rope as kernels

    return kernels.rotate(q, k, kernels.Tables(cos, sin), backward)


@torch.library.custom_op("eagle_kernels::rope_from_positions", mutates_args=())
def _rope_from_positions(
    q: Tensor, k: Tensor, position_ids: Tensor, inv_freq: Tensor, scaling: float, sections: list[int], backward: bool
) -> tuple[Tensor, Tensor]:
    require_kernels("rope_from_positions", q)
    from eagle_kernels.kernels import rope as kernels

    three = (sections[0], sections[1], sections[2]) if sections else None
    return kernels.rotate(q, k, kernels.Positions(position_ids, inv_freq, scaling, three), backward)


def _like(x: Tensor) -> Tensor:
    """What the kernel's `like` allocates, for the fake implementations."""
    batch, heads, tokens, head_dim = x.shape
    if x.stride(-1) == 1 and heads > 1 and tokens > 1 and x.stride(1) < x.stride(2):
        return x.new_empty((batch, tokens, heads, head_dim)).transpose(1, 2)
    return x.new_empty((batch, heads, tokens, head_dim))


@_rope.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    return _like(q), _like(k)


@_rope_from_positions.register_fake
def _(
    q: Tensor, k: Tensor, position_ids: Tensor, inv_freq: Tensor, scaling: float, sections: list[int], backward: bool
) -> tuple[Tensor, Tensor]:
    return _like(q), _like(k)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, first, second, *ctx.rest, ctx.back = inputs
    ctx.save_for_backward(first, second)


def _rope_autograd(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
    cos, sin = ctx.saved_tensors
    if not launches(dq):
        return *_rope(dq, dk, cos, sin, not ctx.back), None, None, None
    from eagle_kernels.kernels import rope as kernels

    return *kernels.rotate(dq, dk, kernels.Tables(cos, sin), not ctx.back), None, None, None


def _rope_from_positions_autograd(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
    return *_rope_from_positions(dq, dk, *ctx.saved_tensors, *ctx.rest, not ctx.back), None, None, None, None, None


_run_rope = with_short_way(_rope, _save, _rope_autograd)
_run_rope_from_positions = with_short_way(_rope_from_positions, _save, _rope_from_positions_autograd)
