"""Dealing: packs of like cost meet in a step, every pack is given out once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from eagle_data.dealing import PackCost, deal
from hypothesis import given, settings
from hypothesis import strategies as st


@given(count=st.integers(0, 60), group=st.integers(1, 9), head=st.integers(0, 12), key=st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_deal_is_a_permutation_whose_steps_are_neighbours_in_cost(count: int, group: int, head: int, key: int):
    costs = np.random.default_rng(key).random(count)
    order = deal(costs, group, key, head=head)
    assert sorted(order.tolist()) == list(range(count))
    steps = order[min(head, count) :]
    spans = [costs[steps[i : i + group]] for i in range(0, len(steps) - group + 1, group)]
    for one in spans:
        assert np.all(np.diff(one) >= 0)
    bounds = sorted((one[0], one[-1]) for one in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(bounds))


def test_the_steps_of_a_window_do_not_come_by_cost():
    costs = np.arange(64.0)
    first = [costs[deal(costs, 4, key)].reshape(16, 4)[:, 0].tolist() for key in range(3)]
    assert all(one != sorted(one) for one in first)
    assert first[0] != first[1]


def test_a_pack_costs_its_tokens_its_squared_documents_and_its_tiles():
    cost = PackCost(2.0, 0.5, 100.0)
    assert cost.of(np.array([10, 4]), np.array([0, 3])).tolist() == [70.0, 316.0]
    assert PackCost().of(np.array([32768]), np.array([64]))[0] == pytest.approx(4.2e10 * 32768 + 7e5 * 32768**2 + 3e12 * 64)
