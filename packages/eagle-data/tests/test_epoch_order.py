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
        whole, extra = int(repeat), round((repeat - int(repeat)) * size)
        own = [counts[number, row] for row in range(size)]
        assert sorted(own) == [whole] * (size - extra) + [whole + 1] * extra
    assert sum(counts.values()) == order.size
