"""Packing: no sample is lost, cut or repeated, both budgets hold, and packs come out full."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from eagle_data.packing import pack
from hypothesis import given, settings
from hypothesis import strategies as st

samples = st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), min_size=1, max_size=60)


@given(samples=samples, max_tiles=st.none() | st.integers(20, 60), open_packs=st.integers(1, 8), data=st.data())
@settings(deadline=None, max_examples=150)
def test_every_index_is_packed_as_often_as_it_occurs_within_both_budgets(
    samples: list[tuple[int, int]], max_tiles: int | None, open_packs: int, data: st.DataObject
):
    lengths, tiles = zip(*samples, strict=True)
    order = data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=120))
    packs = pack(lengths, tiles, order, max_tokens=100, max_tiles=max_tiles, open_packs=open_packs)
    assert Counter(index for members in packs for index in members) == Counter(order)
    for members in packs:
        assert members
        assert sum(lengths[i] for i in members) <= 100
        assert max_tiles is None or sum(tiles[i] for i in members) <= max_tiles


@given(samples=samples)
@settings(deadline=None, max_examples=30)
def test_the_same_order_gives_the_same_packs(samples: list[tuple[int, int]]):
    lengths, tiles = zip(*samples, strict=True)
    first, second = (pack(lengths, tiles, range(len(samples)), max_tokens=100) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("count", "fill"), [(10, 0.95), (100, 0.95), (1000, 0.99), (10_000, 0.995)])
def test_packs_of_a_lognormal_mixture_are_full(count: int, fill: float):
    # Upstream fills 5, 23, 75 and 97 % of its packs at these counts (section 3.6).
    rng = np.random.default_rng(0)
    limit = 49152
    lengths = np.clip(rng.lognormal(8, 1.2, count), 64, limit).astype(int).tolist()
    packs = pack(lengths, [0] * count, range(count), max_tokens=limit)
    assert sum(lengths) / (len(packs) * limit) >= fill


def test_a_sample_that_no_pack_can_hold_is_an_error():
    with pytest.raises(ValueError, match="sample 1 has 11 tokens and 0 tiles, more than a pack of 10 tokens can hold"):
        pack([5, 11], [0, 0], [0, 1], max_tokens=10)
    with pytest.raises(ValueError, match="sample 0 has 5 tokens and 3 tiles, more than a pack of 10 tokens and 2 tiles"):
        pack([5], [3], [0], max_tokens=10, max_tiles=2)


def test_at_least_one_pack_must_be_open():
    with pytest.raises(ValueError, match="open_packs must be at least 1"):
        pack([1], [0], [0], max_tokens=1, open_packs=0)
