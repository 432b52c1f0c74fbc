"""The order of an epoch: every draw once, mixtures by repeats, on demand and the same everywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from eagle_data.epoch_order import EpochOrder, permuted
from hypothesis import given, settings
from hypothesis import strategies as st


@given(size=st.integers(1, 700) | st.integers(4090, 9000), key=st.integers(0, 2**40))
@settings(deadline=None, max_examples=80)
def test_a_keyed_permutation_sends_every_place_to_another(size: int, key: int):
    everything = permuted(np.arange(size), size, key)
    assert sorted(everything.tolist()) == list(range(size))
    some = np.random.default_rng(0).integers(0, size, 9)
    assert np.array_equal(permuted(some, size, key), everything[some])


@pytest.mark.parametrize("size", [2, 5, 23, 5000])
def test_every_place_is_equally_likely_for_every_item(size: int):
    keys = 2000
    items = min(size, 23)
    seen = np.zeros((items, items))
    for key in range(keys):
        seen[np.arange(items), permuted(np.arange(items), size, "fair", key) * items // size] += 1
    expected = keys / items
    chi = ((seen - expected) ** 2 / expected).sum()
    freedom = (items - 1) * items
    assert chi < freedom + 6 * (2 * freedom) ** 0.5


def test_neighbours_are_sent_far_apart():
    size = 100_000
    sent = permuted(np.arange(size), size, "far")
    assert abs(np.corrcoef(sent[:-1], sent[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(sent, np.arange(size))[0, 1]) < 0.02


def test_an_order_is_what_it_was_when_this_test_was_written():
    assert permuted(np.arange(10), 10, "fixed", 1).tolist() == [8, 4, 1, 7, 6, 2, 3, 0, 9, 5]
    assert permuted(np.arange(5), 5000, "fixed", 1).tolist() == [4855, 3770, 817, 1590, 3852]


def test_a_place_outside_is_an_error():
    with pytest.raises(IndexError, match="a permutation of 3 has no place 3"):
        permuted(np.array([0, 3]), 3, 0)


@given(
    sources=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 3.5)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
@settings(deadline=None, max_examples=100)
def test_an_epoch_draws_every_row_as_often_as_its_source_is_repeated(sources: list[tuple[int, float]], seed: int, epoch: int):
    order = EpochOrder([size for size, _ in sources], [repeat for _, repeat in sources], seed=seed, epoch=epoch)
    drawn = order[np.arange(order.size)]
    counts = Counter(zip(drawn.source.tolist(), drawn.row.tolist(), strict=True))
    triples = set(zip(drawn.source.tolist(), drawn.row.tolist(), drawn.copy.tolist(), strict=True))
    assert len(triples) == order.size
    for number, (size, repeat) in enumerate(sources):
        whole, part = int(repeat), (repeat - int(repeat)) * size
        own = [counts[number, row] for row in range(size)]
        extra = sum(own) - whole * size
        assert abs(extra - part) < 1
        assert sorted(own) == [whole] * (size - extra) + [whole + 1] * extra
    assert sum(counts.values()) == order.size


@pytest.mark.parametrize(("rows", "repeat"), [(1, 0.5), (3, 0.1), (1, 0.9), (4, 1.1), (1, 2.5)])
def test_over_epochs_a_source_is_drawn_as_often_as_it_is_repeated(rows: int, repeat: float):
    epochs = 3000
    sizes = np.array([EpochOrder([7, rows], [1.0, repeat], seed=1, epoch=epoch).size - 7 for epoch in range(epochs)])
    spread = (rows * repeat % 1 * (1 - rows * repeat % 1) / epochs) ** 0.5
    assert abs(sizes.mean() - rows * repeat) < 5 * spread + 1e-9
    assert set(sizes.tolist()) == {int(rows * repeat), int(rows * repeat) + 1}


def test_two_sources_and_two_seeds_round_apart():
    sizes = [
        [EpochOrder([1, 1], pair, seed=seed, epoch=epoch).size for epoch in range(200)]
        for pair, seed in (([0.5, 0.0], 0), ([0.0, 0.5], 0), ([0.5, 0.0], 1))
    ]
    assert all(60 <= np.sum(np.array(sizes[one]) != np.array(sizes[other])) <= 140 for one, other in ((0, 1), (0, 2)))


def test_whole_numbers_of_rows_are_not_rounded_whatever_floats_make_of_them():
    for size, repeat, drawn in ((1000, 0.2, 200), (10, 2.7, 27), (800, 600 / 800, 600), (90, 1.0, 90)):
        assert {EpochOrder([size], [repeat], seed=3, epoch=epoch).size for epoch in range(40)} == {drawn}


def test_an_order_of_whole_repeats_is_what_it_was_when_this_test_was_written():
    order = EpochOrder([5, 3], [1.0, 2.0], seed=7, epoch=2)
    drawn = order[np.arange(order.size)]
    assert list(zip(drawn.source.tolist(), drawn.row.tolist(), drawn.copy.tolist(), strict=True)) == [
        (1, 2, 1),
        (0, 3, 0),
        (1, 1, 0),
        (0, 4, 0),
        (1, 1, 1),
        (1, 0, 1),
        (0, 1, 0),
        (1, 0, 0),
        (1, 2, 0),
        (0, 2, 0),
        (0, 0, 0),
    ]


@pytest.mark.parametrize("repeat", [-1.0, float("nan"), float("inf")])
def test_a_repeat_that_is_no_number_of_passes_is_an_error(repeat: float):
    with pytest.raises(ValueError, match=r"source 1 has repeat .*give a finite number of passes"):
        EpochOrder([3, 7], [1.0, repeat], seed=0, epoch=0)
