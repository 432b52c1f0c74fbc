"""How a packed batch reaches the attention of the language model.

A pack holds several documents in one row; `cu_seqlens` says where each begins. It is made once per batch by whoever
packs and travels to every layer as it is; nothing here derives it from a mask or from position ids. The implementation
`packed_sdpa`, registered through the public interfaces of transformers, runs torch's attention document by document
and is plain `sdpa` for every batch without `cu_seqlens`. No kernels live here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging

logger = logging.get_logger(__name__)

PACKED_SDPA = "packed_sdpa"

_EXPLICIT_MASK = ("sdpa", "eager")
_NOT_PACKABLE = ("flex_attention", "paged|eager", "paged|sdpa")
# A bool mask of 16k x 16k tokens is 256 MiB, and eager attention holds several float ones per head.
_EXPLICIT_MASK_TOKENS = 16384


@dataclass(frozen=True)
class PackedAttention:
    """What the language model is called with for a pack: its `attention_mask` and further keyword arguments."""

    attention_mask: torch.Tensor | None
    kwargs: dict[str, Any] = field(default_factory=dict)


def document_bounds(cu_seqlens: torch.Tensor, tokens: int | None = None) -> list[int]:
    """Check `cu_seqlens` (int32 [documents + 1], best on the host) and return it as a list.

    Raises ValueError unless it is 1-D, begins at 0, grows strictly and, where `tokens` is given, ends there.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() < 2:
        raise ValueError(f"cu_seqlens must be 1-D with at least two entries, but has shape {tuple(cu_seqlens.shape)}")
    bounds: list[int] = cu_seqlens.tolist()
    if bounds[0] != 0 or any(end <= start for start, end in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must begin at 0 and grow strictly, but is {_shown(bounds)}")
    if tokens is not None and bounds[-1] != tokens:
        raise ValueError(
            f"cu_seqlens ends at {bounds[-1]} but the pack has {tokens} tokens; padding at the end is a document too"
        )
    return bounds


def packed_attention(
    implementation: str | None, cu_seqlens: torch.Tensor, *, tokens: int, device: torch.device, dtype: torch.dtype
) -> PackedAttention:
    """Arguments that make attention `implementation` treat one row of `tokens` tokens as separate documents.

    - `packed_sdpa` and names registered by other packages get `cu_seqlens` itself and no mask.
    - `flash_attention_*` get the variable-length arguments that transformers defines.
    - `sdpa` and `eager` get an exact block-diagonal causal mask [1, 1, tokens, tokens]: for small packs only.

    Raises ValueError for implementations that cannot keep documents apart.
    """
    if implementation in _NOT_PACKABLE:
        raise ValueError(
            f"attention {implementation!r} cannot run packed batches; choose {PACKED_SDPA!r} or a flash_attention with "
            "set_attn_implementation"
        )
    if implementation in _EXPLICIT_MASK:
        bounds = document_bounds(cu_seqlens, tokens)
        if tokens > _EXPLICIT_MASK_TOKENS:
            logger.warning_once(
                f"Attention {implementation!r} builds a mask of {tokens} x {tokens} for a packed batch. Use {PACKED_SDPA!r}, "
                "which needs none."
            )
        mask = block_diagonal_mask(bounds, device)
        return PackedAttention(mask if implementation == "sdpa" else _additive(mask, dtype))
    if implementation is not None and "flash_attention" in implementation:
        bounds = document_bounds(cu_seqlens, tokens)
        longest = max(end - start for start, end in pairwise(bounds))
        on_device = cu_seqlens.to(device=device, dtype=torch.int32)
        lengths = {"cu_seq_lens_q": on_device, "cu_seq_lens_k": on_device, "max_length_q": longest, "max_length_k": longest}
        return PackedAttention(None, lengths)
    # Under context parallelism the row is a part of the pack, so only the one-device implementation may check its length.
    document_bounds(cu_seqlens, tokens if implementation == PACKED_SDPA else None)
    if implementation == PACKED_SDPA:
        cu_seqlens = cu_seqlens.cpu()  # one transfer a batch instead of one a layer
    # transformers returns a 4-D mask as it is; without one it would look for documents in the position ids and build
    # the mask of tokens x tokens that these implementations exist to avoid.
    no_mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)
    return PackedAttention(no_mask, {"cu_seqlens": cu_seqlens})


def block_diagonal_mask(bounds: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Bool mask [1, 1, tokens, tokens], True where a query may see a key: same document, not later."""
    lengths = torch.tensor([end - start for start, end in pairwise(bounds)], device=device)
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    return ((document[:, None] == document[None, :]).tril())[None, None]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def packed_sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seqlens: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention `packed_sdpa` in the form transformers calls.

    Args:
        module: the layer that asks; read only for an ordinary batch.
        query: [1, heads, tokens, head_dim].
        key: [1, kv_heads, tokens, head_dim].
        value: [1, kv_heads, tokens, head_dim].
        attention_mask: for an ordinary batch; a pack needs none.
        dropout: probability.
        scaling: of the scores; None is head_dim^-1/2.
        is_causal: for an ordinary batch; documents of a pack are always causal.
        cu_seqlens: int32 [documents + 1]; None means an ordinary batch, answered by transformers' `sdpa`.
        **kwargs: to transformers' `sdpa`.

    Returns:
        [1, tokens, heads, head_dim] and None. Never makes a mask or scores of tokens x tokens over the whole pack.
    """
    if cu_seqlens is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    bounds = cu_seqlens.tolist()
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, end in pairwise(bounds)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Make `attn_implementation="packed_sdpa"` known to transformers. Harmless when repeated."""
    AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention)
    AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def _shown(bounds: list[int]) -> str:
    return str(bounds if len(bounds) <= 12 else [*bounds[:11], "…"])
