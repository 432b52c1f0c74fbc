"""Cut the batch of a pack to the tokens that one rank owns, by the names of its keys.

Keys are told apart by name and never by size: a pack with as many tiles as tokens would otherwise be cut in the wrong place. What
cannot be cut rightly is an error that says what to pass instead. `gather` is the inverse, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eagle_parallel.plan import Plan

# The token dimension of each key that is cut; position_ids may have leading axes (multimodal rotary sections).
TOKEN_DIMS: Mapping[str, int] = {
    "input_ids": -1,
    "position_ids": -1,
    "shift_labels": -1,
    "loss_weight": -1,
    "token_type_ids": -1,
    "inputs_embeds": -2,
}
_WHOLE = ("cu_seqlens",)
_VISION = ("pixel_values", "pixel_values_videos", "image_flags", "image_grid_thw", "visual_features")
_MENDS = {
    "labels": "a shift would cross the cut; pass shift_labels, shifted within each document, and leave labels out",
    "attention_mask": "document borders travel in cu_seqlens and in the plan; leave attention_mask out (or None)",
}


def shard_batch(
    batch: Mapping[str, Any], plan: Plan, rank: int, *, token_dims: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The part of a pack's batch that a context-parallel rank trains on. With plan.cp = 1 the batch is returned as it is.

    Cut along their token dimension: input_ids, position_ids, shift_labels, loss_weight, token_type_ids (last dimension) and
    inputs_embeds (last but one), with or without a batch dimension of 1. `loss_rows` is rewritten to this rank's row numbers.
    `cu_seqlens` stays that of the whole pack. Values that are not tensors pass through.

    Args:
        batch: model inputs of one pack of plan.tokens tokens.
        plan: the pack's plan.
        rank: the context-parallel rank, `mesh.cp_rank`; not the global rank.
        token_dims: token dimension of further keys, or other dimensions for the known ones.

    Returns:
        A new dict with the same keys; tensors keep dtype and device.

    Raises:
        ValueError: a token count differs from the plan's, a key cannot be cut (labels, attention_mask; pixels, which are dealt
            by `make_vision_plan`) or is unknown.
    """
    plan.local_tokens(rank)
    dims = {**TOKEN_DIMS, **(token_dims or {})}
    if plan.cp == 1:
        for key, value in batch.items():
            if key in dims and isinstance(value, Tensor):
                _check_tokens(key, value, dims[key], plan)
        return dict(batch)
    index = plan.local_index(rank)
    return {key: _shard_value(key, value, dims, plan, index) for key, value in batch.items()}


def _shard_value(key: str, value: Any, dims: Mapping[str, int], plan: Plan, index: Tensor) -> Any:
    if not isinstance(value, Tensor) or key in _WHOLE:
        return value
    if key in dims:
        _check_tokens(key, value, dims[key], plan)
        return value.index_select(dims[key], index.to(value.device))
    if key == "loss_rows":
        return _local_rows(value, plan, index)
    if key in _VISION:
        raise ValueError(
            f"{key} goes by tiles and frames, not by tokens: take it out of the batch before it is sharded. Deal the tiles with "
            f"vision_plan = make_vision_plan(placeholders, unit_tokens, mesh), run the tower on local_units(pixels, vision_plan, "
            f"mesh.cp_rank) (or let the loader read only these: vision_plan.loads), and put the features in place with "
            f"scatter_vision(embeds, features, vision_plan, plan, mesh)."
        )
    if key in _MENDS:
        raise ValueError(f"{key} cannot be sharded: {_MENDS[key]}.")
    raise ValueError(
        f"no rule says how to shard the tensor {key!r}; name its token dimension in token_dims={{{key!r}: ...}} or leave it out."
    )


def _check_tokens(key: str, value: Tensor, dim: int, plan: Plan) -> None:
    if not -value.dim() <= dim < value.dim() or value.shape[dim] != plan.tokens:
        raise ValueError(
            f"{key} has shape {list(value.shape)}; dimension {dim} should hold the plan's {plan.tokens} tokens. Make the plan "
            f"from this pack's cu_seqlens."
        )
    if key in TOKEN_DIMS and key != "position_ids" and value.dim() == 1 - dim and value.shape[0] != 1:
        raise ValueError(f"{key} has shape {list(value.shape)}; a pack has a batch dimension of 1.")


def _local_rows(loss_rows: Tensor, plan: Plan, index: Tensor) -> Tensor:
    """Row numbers in the whole pack to row numbers in this rank's share, rows of other ranks left out."""
    place = torch.full((plan.tokens,), -1, dtype=torch.int64)
    place[index] = torch.arange(index.numel())
    rows = loss_rows.reshape(-1).cpu()
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= plan.tokens):
        raise ValueError(
            f"loss_rows holds rows from {int(rows.min())} to {int(rows.max())} but the plan has {plan.tokens} tokens."
        )
    local = place[rows]
    return local[local >= 0].to(loss_rows.device)
