"""The stream: windows that can be made again from a few numbers, epochs without a seam, steps of like cost."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from eagle_data.dealing import PackCost
from eagle_data.loader import StatefulLoader, by_weight
from eagle_data.pack_loading import Source
from eagle_data.pack_stream import PackStream, Place, StreamPlan
from hypothesis import given, settings
from hypothesis import strategies as st

from .made_up_rows import MadeUpRows, made_up


def stream(rows: MadeUpRows, repeat: float = 1.0, **plan) -> PackStream:
    return PackStream([rows.lengths], [rows.tiles], [repeat], StreamPlan(**{"context_length": 64, **plan}))


@given(
    count=st.integers(1, 300),
    group=st.integers(1, 7),
    head=st.integers(0, 6),
    buffer=st.integers(1, 40),
    mode=st.sampled_from(["packed", "grouped", "unpacked"]),
)
@settings(deadline=None, max_examples=60)
def test_windows_of_an_epoch_hold_every_draw_once_and_each_can_be_made_from_its_place(count, group, head, buffer, mode):
    made = stream(made_up(count, 64), mode=mode, buffer=buffer, max_tiles=9, group=3, window_steps=3)
    place, drawn = Place(group=group, head=head), Counter()
    while place.epoch == 0:
        stored = json.loads(json.dumps(asdict(place)))
        window = made.window(place)
        again = stream(made_up(count, 64), mode=mode, buffer=buffer, max_tiles=9, group=3, window_steps=3)
        assert again.window(Place(**{**stored, "wait": tuple(stored["wait"])})) == window
        drawn.update(draw for members in window.packs for draw in members)
        place = window.after
    assert drawn == Counter(range(count))
    assert place == Place(1, group=group)


def test_each_epoch_is_packed_differently_from_the_seed():
    rows = made_up(200, 60)

    def packed(seed: int, epoch: int) -> list[tuple[int, ...]]:
        made = stream(rows, seed=seed)
        packs = made.epoch_packs(epoch)
        return sorted(tuple(sorted(row for _, row, _ in made.members(epoch, members))) for members in packs)

    assert packed(1, 0) == packed(1, 0)
    kinds = [set(packed(1, 0)), set(packed(1, 1)), set(packed(2, 0))]
    for one in range(3):
        for other in range(one):
            assert len(kinds[one] & kinds[other]) < 0.2 * len(kinds[one])


def test_steps_of_like_cost_also_where_epochs_and_steps_do_not_end_together():
    rng = np.random.default_rng(3)
    lengths = np.clip(rng.lognormal(6, 1, 6000), 16, 4096).astype(np.int32)
    loader = StatefulLoader(
        [Source(MadeUpRows(lengths, np.zeros(6000, np.int32)))],
        context_length=4096,
        tile_size=8,
        seed=0,
        global_batch=32,
        workers=0,
        cost=PackCost(1.0, 0.001),
    )
    packs = loader.packs_in_epoch(0) + 300
    costs = []
    for _, pack in zip(range(packs), loader, strict=False):
        costs.append(sum(loader.plan.cost.of(np.array([len(s.input_ids)]), np.array([0]))[0] for s in pack.samples))
    steps = np.array(costs[: len(costs) // 32 * 32]).reshape(-1, 32)
    balance = steps.max(1) / steps.mean(1)
    assert balance.mean() < 1.06
    whole = np.random.default_rng(0).permutation(steps.reshape(-1)).reshape(-1, 32)
    assert (whole.max(1) / whole.mean(1)).mean() > 1.1, "costs that are alike anyway would show nothing"


def test_a_row_that_no_pack_can_hold_is_named():
    rows = made_up(5, 60)
    with pytest.raises(ValueError, match=r"sample \d of source 0 has \d+ tokens and \d tiles, more than a pack of 7 tokens"):
        stream(rows, context_length=7)
    with pytest.raises(ValueError, match="window_steps must be at least 1"):
        StreamPlan(8, window_steps=0)


def test_the_fingerprint_follows_rows_repeats_and_packing_but_not_the_batch():
    rows = made_up(50, 60)
    longer = MadeUpRows(rows.lengths + 1, rows.tiles)
    first = stream(rows).fingerprint()
    assert stream(rows, global_batch=4).fingerprint() == first
    others = [stream(longer), stream(rows, 2.0), stream(rows, buffer=7), stream(rows, seed=3), stream(rows, max_tiles=8)]
    for name, digest in (("a", "1"), ("a", "2"), ("b", "1")):
        parts = [rows.lengths], [rows.tiles], [1.0], StreamPlan(64)
        others.append(PackStream(*parts, names=[name], digests=[digest]))
    assert len({first, *(other.fingerprint() for other in others)}) == 9


def test_datasets_are_mixed_by_weight():
    datasets = [made_up(100, 60, name="a"), made_up(1000, 60, name="b"), made_up(0, 60, name="none")]
    sources = by_weight(datasets, [3, 1, 5], samples=800)
    assert [round(source.repeat, 6) for source in sources] == [6.0, 0.2, 0.0]
    loader = StatefulLoader(sources, context_length=64, tile_size=8, seed=0, workers=0)
    drawn = Counter(source for members in loader.epoch_packs(0) for source, _ in members)
    assert drawn == {0: 600, 1: 200}
    with pytest.raises(ValueError, match="must not be negative"):
        by_weight(datasets, [1, -1, 0], samples=10)


def test_at_ten_million_rows_the_state_is_small_and_going_on_is_quick():
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 8000, 10_000_000, dtype=np.int32)
    sources = [Source(MadeUpRows(lengths[:7_000_000], lengths[:7_000_000] % 5, "a"), 1.5), Source(made_up(3_000_000, 9000))]
    options: dict[str, Any] = {
        "context_length": 32768,
        "tile_size": 8,
        "seed": 0,
        "global_batch": 64,
        "workers": 0,
        "max_tiles": 100,
    }
    first = StatefulLoader(sources, **options)
    stream = iter(first)
    for _ in range(1300):
        next(stream)
    state = json.dumps(first.state_dict())
    whole = [sample.where for sample in next(stream).samples]
    assert len(state) < 100_000
    second = StatefulLoader(sources, **options)
    begun = time.process_time()
    second.load_state_dict(json.loads(state))
    again = [sample.where for sample in next(iter(second)).samples]
    assert time.process_time() - begun < 1.0
    assert again == whole


def test_a_window_with_very_many_samples_ends_early_with_a_whole_step():
    rows = MadeUpRows(np.ones(200_000, np.int32), np.zeros(200_000, np.int32))
    window = stream(rows, context_length=2000, buffer=4096).window(Place(group=4))
    assert len(window.packs) < 16 * 4
    assert len(window.packs) % 4 == 0
    assert 65_536 <= sum(map(len, window.packs)) < 65_536 + 4 * 2000
    assert replace(window.after, wait=()).number == 1


def test_tiles_count_in_the_cost_by_which_packs_meet():
    rng = np.random.default_rng(0)
    rows = MadeUpRows(np.full(640, 30, np.int32), rng.integers(0, 40, 640, dtype=np.int32))
    made = stream(rows, global_batch=8, cost=PackCost(1.0, 0.0, 10.0))
    window = made.window(Place(group=8))
    tiles = np.array([sum(rows.tiles[row] for _, row, _ in made.members(0, members)) for members in window.packs])
    steps = tiles.reshape(-1, 8)
    assert np.mean(steps.max(1) - steps.min(1)) < 0.25 * (tiles.max() - tiles.min())


def test_an_epoch_that_rounds_to_nothing_is_passed_over():
    made = stream(MadeUpRows(np.array([9], np.int32), np.array([0], np.int32)), 0.6)
    place, epochs = Place(), []
    for _ in range(50):
        window = made.window(place)
        assert len(window.packs) == 1
        epochs.append(window.place.epoch)
        place = window.after
    assert epochs == sorted(set(epochs))
    assert 60 <= epochs[-1] <= 120


def test_a_loader_goes_on_over_epochs_that_are_empty():
    def made() -> StatefulLoader:
        source = Source(MadeUpRows(np.array([9], np.int32), np.array([0], np.int32)), 0.6)
        return StatefulLoader([source], context_length=64, tile_size=8, seed=0, workers=0, global_batch=3)

    whole = [(pack.position, pack.epoch) for pack in islice(made(), 40)]
    assert len({epoch for _, epoch in whole}) == 40
    for taken in (1, 7, 20):
        first, second = made(), made()
        stream = iter(first)
        list(islice(stream, taken))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [(pack.position, pack.epoch) for pack in islice(second, 40 - taken)] == whole[taken:]


@pytest.mark.parametrize("repeat", [-0.5, float("nan"), float("inf")])
def test_a_repeat_that_is_no_number_of_passes_names_its_source(repeat: float):
    with pytest.raises(ValueError, match=r"source 'pages': repeat .* is no number of passes; give a finite one"):
        Source(made_up(5, 60, name="pages"), repeat)
    with pytest.raises(ValueError, match=r"source 0: repeat .* is no number of passes"):
        stream(made_up(5, 60), repeat)
    with pytest.raises(ValueError, match=r"holds 5e.* samples; lower repeat_time"):
        stream(made_up(5, 60), 1e12)


def test_the_state_stays_small_where_packs_hold_more_samples_than_may_wait():
    rows = MadeUpRows(np.random.default_rng(0).integers(8, 40, 200_000, dtype=np.int32), np.zeros(200_000, np.int32))
    loaders = [StatefulLoader([Source(rows)], context_length=32768, tile_size=8, seed=0, workers=0, window_steps=4) for _ in "ab"]
    stream = iter(loaders[0])
    packs = list(islice(stream, 70))
    assert min(len(pack.samples) for pack in packs) > 1024
    assert np.mean([sum(len(sample.input_ids) for sample in pack.samples) for pack in packs]) > 0.999 * 32768
    state = json.dumps(loaders[0].state_dict())
    assert len(state) < 20_000
    loaders[1].load_state_dict(json.loads(state))
    assert [s.where for s in next(iter(loaders[1])).samples] == [s.where for s in next(stream).samples]
