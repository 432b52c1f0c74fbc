"""A pack shared by ranks: loss, every gradient and the optimiser step of the real model equal one process in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import eagle_kernels
import eagle_parallel.hf
import numpy as np
import pytest
import torch
import torch.distributed as dist
from eagle_data.collate import Batch, LoadedSample, collate
from eagle_data.loader import Pack
from eagle_model import Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration
from eagle_parallel import Mesh, global_normaliser, init_mesh, normalise_loss
from eagle_parallel.testing import run_ranks
from eagle_train.engine import LocalEngine, set_trainable
from eagle_train.errors import TrainingError
from eagle_train.ranks import Ranks, sums
from eagle_train.recipe import Stage
from eagle_train.shares import Share, check_same_samples, model_inputs, readable, tile_choice

WORLDS = (1, 2, 3)
ALL = ("vision_model", "mlp1", "language_model")
CONTEXT, TILE, EACH = 7, 16, 4
# For each pack its samples as (text tokens before, tiles, text tokens after).
PACKS = {
    "many tiles": ((3, 5, 9), (1, 1, 6), (4, 0, 2)),
    "one tile": ((5, 0, 6), (2, 1, 9)),
    "no tile": ((11, 0, 2), (4, 0, 4)),
    "one short text": ((2, 0, 1),),
}


def model() -> Any:
    config = Eagle2_5_VLConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 4,
            "vision_use_head": False,
        },
        text_config={
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.2,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        select_layer=-1,
        force_image_size=TILE,
        downsample_ratio=0.5,
        image_token_index=CONTEXT,
    )
    torch.manual_seed(0)
    built: Any = Eagle2_5_VLForConditionalGeneration(config)
    built.set_attn_implementation("packed_sdpa")
    # As in training, and in float64 throughout: transformers' own RMSNorm computes in float32.
    eagle_kernels.apply(built.double())
    return built.train()


def samples_of(name: str) -> list[LoadedSample]:
    rng = np.random.default_rng(len(name))
    samples = []
    for number, (before, tiles, after) in enumerate(PACKS[name]):
        ids = np.concatenate([rng.integers(8, 40, before), np.full(tiles * EACH, CONTEXT), rng.integers(8, 40, after)])
        labels = np.concatenate([np.full(before + tiles * EACH, -100), ids[before + tiles * EACH :]])
        pixels = rng.normal(size=(tiles, 3, TILE, TILE)).astype(np.float32)
        samples.append(LoadedSample(ids.astype(np.int32), labels.astype(np.int32), pixels, f"{name}:{number}"))
    return samples


def pack(name: str) -> Batch:
    return collate(samples_of(name), tile_size=TILE, weighting="sqrt_sample")


def share(
    name: str, mesh: Mesh, config: Any, *, dummy_tile: bool = False, lost: str = "", lost_on: int = 0
) -> tuple[Share, Pack]:
    """The pack as a loader with `tile_choice` hands it to this rank, `lost` unreadable on one; and what was made of it."""
    samples: Any = samples_of(name)
    chosen = tile_choice(mesh, config)
    failures: list[tuple[str, str]] = []
    loaded, first = [], 0
    for sample in samples:
        wanted = list(range(len(sample.pixels)))
        if chosen is not None:
            own = chosen(samples)
            wanted = [tile for tile in wanted if own(first + tile)]
        first += len(sample.pixels)
        if sample.where == lost and wanted and mesh.cp_rank == lost_on:
            failures.append((sample.where, f"torn on rank {mesh.cp_rank}"))
            if chosen is None:
                continue
        loaded.append(replace(sample, pixels=sample.pixels[wanted]))
    pack, owners = readable(Pack(tuple(loaded), tuple(failures), 0), mesh, config)
    batch = collate(pack.samples, tile_size=TILE, weighting="sqrt_sample", dummy_tile=dummy_tile)
    return Share(batch, owners), pack


def refusal(batches: list[Batch], mesh: Mesh) -> str:
    try:
        check_same_samples(batches, mesh)
    except TrainingError as error:
        return str(error)
    return ""


def step_on_rank() -> dict[str, Any]:
    world = dist.get_world_size()
    mesh = init_mesh(cp=world)
    results: dict[str, Any] = {}
    cases = [(name, ALL, "") for name in PACKS]
    for case, trainable, lost in [*cases, ("no tile", ("mlp1",), ""), ("many tiles", ALL, "many tiles:0")]:
        net = model()
        trained = set_trainable(net, trainable, unused=net.unused_parameter_names())
        if world > 1:
            eagle_parallel.hf.apply(net, mesh)
        engine = LocalEngine(trained, Stage(name="s", context_length=64, steps=1), mesh)
        mine, kept = share(case, mesh, net.config, dummy_tile=len(trainable) == 1, lost=lost, lost_on=world - 1)
        batch = mine.batch
        normaliser = global_normaliser(float(batch.loss_weight.sum(dtype="float64")), mesh, group="dp")
        loss = net(**model_inputs(mine, mesh, net.config, torch.device("cpu")), use_cache=False).loss
        engine.backward(normalise_loss(loss, normaliser, averaged_over=world))
        total = sums((float(loss.detach()) / normaliser,), mesh)[0]
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in trained}
        norm = engine.step(1e-3)  # which has averaged them
        for grad in grads.values():
            if grad is not None and world > 1:
                dist.all_reduce(grad)
        grads = {name: None if grad is None else grad / world for name, grad in grads.items()}
        name = f"{case} {len(trainable)}{' lost' if lost else ''}"
        results[name] = total, norm, grads, {name: p.detach() for name, p in trained}
        results[f"{name} read"] = len(batch.pixel_values), mine.owners, kept.failures, [s.where for s in kept.samples]
    results["samples"] = refusal([pack("one tile")], mesh), refusal([pack("one tile" if mesh.rank else "no tile")], mesh)
    ranks = Ranks(dist.get_rank() == 0, dist.group.WORLD if world > 1 else None)
    results["agreed"] = ranks.agree(dist.get_rank()), ranks.agree("word" if ranks.first else None)
    return results


@pytest.fixture(scope="module")
def steps() -> dict[int, list[Any]]:
    return run_ranks(__file__, "step_on_rank", WORLDS, seconds=240)


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("case", [*(f"{name} 3" for name in PACKS), "no tile 1", "many tiles 3 lost"])
def test_a_step_over_ranks_is_that_of_one_process(steps: dict[int, list[Any]], world: int, case: str):
    loss, norm, grads, after = steps[1][0][case]
    largest = max(float(grad.abs().max()) for grad in grads.values() if grad is not None)
    for rank in steps[world]:
        found_loss, found_norm, found, weights = rank[case]
        assert found_loss == pytest.approx(loss, rel=1e-13)
        assert found_norm == pytest.approx(norm, rel=1e-12)
        for name, expected in grads.items():
            assert (found[name] is None) == (expected is None), f"{name}: weight decay would differ"
            if expected is not None:
                bound = 1e-12 * max(float(expected.abs().max()), 1e-3 * largest)
                assert float((found[name] - expected).abs().max()) <= bound, name
        assert all(torch.equal(weights[name], steps[world][0][case][3][name]) for name in after), "weights have parted"


@pytest.mark.parametrize("world", WORLDS[1:])
def test_every_tile_is_read_by_one_rank(steps: dict[int, list[Any]], world: int):
    for name, samples in PACKS.items():
        found = [rank[f"{name} 3 read"] for rank in steps[world]]
        owners = found[0][1]
        assert len(owners) == sum(tiles for _, tiles, _ in samples)
        for number, (pixels, told, failures, _) in enumerate(found):
            assert told == owners
            assert pixels == owners.count(number)
            assert failures == ()


@pytest.mark.parametrize("world", WORLDS)
def test_a_sample_that_one_rank_cannot_read_is_dropped_by_all_with_its_reason(steps: dict[int, list[Any]], world: int):
    for rank in steps[world]:
        _, owners, failures, samples = rank["many tiles 3 lost read"]
        assert failures == (("many tiles:0", f"torn on rank {world - 1}"),)
        assert samples == ["many tiles:1", "many tiles:2"]
        assert len(owners) == (1 if world > 1 else 0)


def test_the_first_rank_decides(steps: dict[int, list[Any]]):
    assert all(rank["agreed"] == (0, "word") for ranks in steps.values() for rank in ranks)


def test_ranks_that_have_read_different_samples_all_say_so(steps: dict[int, list[Any]]):
    for world in WORLDS[1:]:
        for number, rank in enumerate(steps[world]):
            same, other = rank["samples"]
            assert same == ""
            assert f"on rank {number} they are" in other
            assert ("no tile:0" in other) == (number == 0)
