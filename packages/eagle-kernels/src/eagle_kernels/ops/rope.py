"""Rotary position embedding in the half-rotation layout of Qwen2, Qwen3 and Llama, full or partial.

The arithmetic runs in the promoted dtype of the tensor and cos, and the result is rounded to the tensor's dtype: with cos and
sin of q's own dtype this is what transformers does bit for bit; with float32 cos and sin there is a single rounding.
Not for the interleaved layout of GPT-J, nor for building cos and sin from positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle_kernels.arguments import check_float, check_same_device


def naive_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The truth of `rope`: plain PyTorch, no checks."""
    cos, sin = (table[None] if table.dim() == 2 else table for table in (cos, sin))
    cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


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
        (q, k) rotated, new tensors with the shapes and dtypes given.

    Raises:
        TypeError: an argument is not a float tensor.
        ValueError: shapes or devices do not fit; the message names the argument.
    """
    check_float("rope", q=q, k=k, cos=cos, sin=sin)
    check_same_device("rope", "q", q.device, k=k, cos=cos, sin=sin)
    for name, tensor in (("q", q), ("k", k)):
        if tensor.dim() != 4:
            raise ValueError(f"rope: {name} has shape {list(tensor.shape)}, expected [batch, heads, tokens, head_dim].")
    batch, _, tokens, head_dim = q.shape
    if (k.shape[0], k.shape[2], k.shape[3]) != (batch, tokens, head_dim):
        raise ValueError(
            f"rope: k has shape {list(k.shape)}, expected [{batch}, kv_heads, {tokens}, {head_dim}] because q has shape "
            f"{list(q.shape)}."
        )
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
    return naive_rope(q, k, cos, sin)
