"""What a model step takes of a pack: the whole of it, or one context-parallel rank's share.

All ranks of a group read the same pack, each only the pixels of its own tiles. Who has which tile follows from the tokens of the
pack's samples, before anything is decoded; who has which tokens is planned once it is known what could be read. How both are
dealt is eagle-parallel's. A sample that one rank cannot read is left out by all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from eagle_data.collate import Batch
from eagle_data.loader import Pack, TileChoice
from eagle_data.torch import to_torch
from eagle_parallel import Mesh, ModelShape, make_plan, shard_batch
from eagle_parallel.vision import dummy_unit, scatter_vision
from eagle_parallel.vision_plan import VisionPlan, make_vision_plan

from eagle_train.errors import TrainingError
from eagle_train.ranks import sums

_ON_HOST = ("cu_seqlens", "loss_rows")


@dataclass(frozen=True)
class Share:
    """A pack as this rank has it: tokens and labels of all of `batch`, pixels of its own tiles.

    `owners[tile]` is the context-parallel rank that has the pixels of a tile of the pack; () where there is one rank.
    """

    batch: Batch
    owners: tuple[int, ...] = ()


def tile_choice(mesh: Mesh, config: Any) -> TileChoice | None:
    """Which tiles of a pack this rank decodes, for `StatefulLoader(load=…)` and a model with `config`; None for all of them."""
    if mesh.cp == 1:
        return None

    def choose(samples: Sequence[Any]) -> Any:
        plan = _deal([sample.input_ids for sample in samples], mesh, config)
        return partial(plan.loads, rank=mesh.cp_rank)

    return choose


def readable(pack: Pack, mesh: Mesh, config: Any) -> tuple[Pack, tuple[int, ...]]:
    """What all ranks can read of a pack of a loader with `tile_choice`, and the owners of its tiles. All ranks call it.

    Returns:
        The pack without the samples that some rank could not read; its `failures` are those of all ranks, equal on every one,
        a sample once. And for each tile that is left the rank that has its pixels: () where there is one rank.
    """
    if mesh.cp == 1:
        return pack, ()
    failures = _of_all_ranks(pack.failures, mesh)
    dealt = _deal([sample.input_ids for sample in pack.samples], mesh, config).owners
    samples, owners, first = [], [], 0
    for sample in pack.samples:
        tiles = _tiles(sample.input_ids, config)
        if sample.where not in failures:
            samples.append(sample)
            owners += dealt[first : first + tiles]
        first += tiles
    return replace(pack, samples=tuple(samples), failures=tuple(failures.items())), tuple(owners)


def model_inputs(share: Share, mesh: Mesh, config: Any, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of an Eagle model with `config` for this rank's share of a pack, on `device`."""
    batch = share.batch
    if mesh.cp == 1:
        inputs = to_torch(batch, device)
        inputs.pop("labels")
        if not len(batch.pixel_values):
            inputs["pixel_values"] = inputs["image_flags"] = None
        return inputs
    whole = to_torch(batch)
    whole.pop("labels")
    tiles = whole.pop("pixel_values")[whole.pop("image_flags") != 0]
    plan = make_plan(whole["cu_seqlens"], mesh, _heads(config))
    inputs = shard_batch(whole, plan, mesh.cp_rank)
    # The dummy tile of a pack without pictures is on every rank; it stands for "run the tower".
    if share.owners or len(batch.pixel_values):
        context = whole["input_ids"] == config.image_token_index
        each = [config.num_image_token] * len(share.owners)
        vision = make_vision_plan(context, each, mesh, owners=share.owners)
        inputs["pixel_values"] = tiles if len(tiles) else dummy_unit(tiles)
        inputs["place_features"] = partial(scatter_vision, vision_plan=vision, plan=plan, mesh=mesh)
    moved = {
        name: value.to(device, non_blocking=True)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and name not in _ON_HOST
    }
    return {**inputs, **moved, "cp_plan": plan}


def check_same_samples(batches: Iterable[Batch], mesh: Mesh) -> None:
    """Raise TrainingError, on every rank, unless all ranks of the mesh have the same samples. All ranks call it.

    Prepared data that differ from rank to rank would otherwise spoil the step, or leave ranks waiting for one another.
    """
    if mesh.cp == 1:
        return
    batches = list(batches)
    own = zlib.crc32(repr([(batch.provenance, batch.cu_seqlens.tolist()) for batch in batches]).encode())
    mean = sums((float(own),), mesh)[0] / mesh.world  # exact: 32 bits times the ranks fit float64
    if sums((abs(own - mean),), mesh)[0]:
        samples = [where for batch in batches for where in batch.provenance]
        raise TrainingError(
            f"the ranks have read different samples; on rank {mesh.rank} they are {', '.join(samples[:4])}"
            f"{', …' if len(samples) > 4 else ''}. Give all ranks the same media files and prepared data"
        )


def _deal(ids: Sequence[np.ndarray], mesh: Mesh, config: Any) -> VisionPlan:
    """The tiles of all samples dealt to ranks, from their placeholder tokens alone."""
    context = torch.from_numpy(np.concatenate(ids) == config.image_token_index)
    return make_vision_plan(context, [config.num_image_token] * sum(_tiles(sample, config) for sample in ids), mesh)


def _tiles(ids: np.ndarray, config: Any) -> int:
    return int((ids == config.image_token_index).sum()) // config.num_image_token


def _of_all_ranks(failures: Sequence[tuple[str, str]], mesh: Mesh) -> dict[str, str]:
    """Reasons by sample, of all ranks; of a sample that several cannot read, the first rank's."""
    group = mesh.group("cp")
    if not sums((float(len(failures)),), mesh)[0]:
        return {}
    found: list[Any] = [None] * mesh.cp
    dist.all_gather_object(found, list(failures), group=group)
    told: dict[str, str] = {}
    for one in found:
        for where, reason in one:
            told.setdefault(where, reason)
    return told


def _heads(config: Any) -> ModelShape:
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelShape(text.num_attention_heads, text.num_key_value_heads, size)


__all__ = ["Share", "check_same_samples", "model_inputs", "readable", "tile_choice"]
