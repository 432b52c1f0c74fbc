"""What a model step takes of a pack: the whole of it, or one context-parallel rank's share.

All ranks of a group hold the same pack; the plans, made anew for each from its document borders, say which tokens and which tiles
are whose. How they are dealt is eagle-parallel's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from eagle_data.collate import Batch
from eagle_data.torch import to_torch
from eagle_parallel import Mesh, make_plan, shard_batch
from eagle_parallel.vision import local_units, scatter_vision
from eagle_parallel.vision_plan import make_vision_plan

from eagle_train.errors import TrainingError
from eagle_train.ranks import sums

_ON_HOST = ("cu_seqlens", "loss_rows")


def model_inputs(batch: Batch, mesh: Mesh, config: Any, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of an Eagle model with `config` for this rank's share of `batch`, on `device`."""
    if mesh.cp == 1:
        inputs = to_torch(batch, device)
        inputs.pop("labels")
        if not len(batch.pixel_values):
            inputs["pixel_values"] = inputs["image_flags"] = None
        return inputs
    whole = to_torch(batch)
    whole.pop("labels")
    tiles = whole.pop("pixel_values")[whole.pop("image_flags") != 0]
    plan = make_plan(whole["cu_seqlens"], mesh)
    inputs = shard_batch(whole, plan, mesh.cp_rank)
    if len(batch.pixel_values):
        context = whole["input_ids"] == config.image_token_index
        vision = make_vision_plan(context, [config.num_image_token] * len(tiles), mesh)
        inputs["pixel_values"] = local_units(tiles, vision, mesh.cp_rank)
        inputs["place_features"] = partial(scatter_vision, vision_plan=vision, plan=plan, mesh=mesh)
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and name not in _ON_HOST
    }
    return {**inputs, **moved, "cp_plan": plan}


def check_same_samples(batches: Sequence[Batch], mesh: Mesh) -> None:
    """Raise TrainingError, on every rank, unless all ranks of the mesh have read the same samples. All ranks call it.

    A file that only some of them can read would otherwise spoil the step, or leave ranks waiting for one another.
    """
    if mesh.cp == 1:
        return
    own = zlib.crc32(repr([(batch.provenance, batch.cu_seqlens.tolist()) for batch in batches]).encode())
    mean = sums((float(own),), mesh)[0] / mesh.world  # exact: 32 bits times the ranks fit float64
    if sums((abs(own - mean),), mesh)[0]:
        samples = [where for batch in batches for where in batch.provenance]
        raise TrainingError(
            f"the ranks have read different samples; on rank {mesh.rank} they are {', '.join(samples[:4])}"
            f"{', …' if len(samples) > 4 else ''}. Give all ranks the same media files and prepared data"
        )


__all__ = ["check_same_samples", "model_inputs"]
