"""The planner cuts a gather into the stages of heads that attention cuts it into."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eagle_parallel.attention import compose
from eagle_parallel.layout import deal_heads
from eagle_parallel.planner import Cluster, attention_time, rank_load
from eagle_parallel.planner.stages import MEMORY_BYTES, STAGE_BYTES, stage_borders, stage_counts
from hypothesis import given
from hypothesis import strategies as st

SHAPES = [(28, 4, 128), (7, 1, 64), (14, 2, 80), (32, 8, 128), (3, 1, 128), (64, 8, 128)]


@pytest.mark.parametrize("ulysses", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [8192, 1 << 17, 1 << 20])
def test_planner_and_attention_agree(shape: tuple[int, int, int], ulysses: int, tokens: int) -> None:
    query, kv, size = shape
    shares = tuple(deal_heads(query, kv, ulysses))
    load = rank_load((tokens,), 4, "zigzag")
    schedule: Any = SimpleNamespace(widest=int(load.moved_tokens))
    there = compose._stage_counts(schedule, shares, torch.empty(1, 1, size, dtype=torch.bfloat16), None)
    heads: Any = SimpleNamespace(query_heads=query, kv_heads=kv, head_dim=size)
    assert attention_time(heads, load, tokens, 4, ulysses, Cluster()).head_groups == there


def test_there_are_no_more_stages_than_heads_and_always_one() -> None:
    assert stage_counts(0, 4) == (1, 1)
    assert stage_counts(3 * STAGE_BYTES, 4) == (3, 3)
    assert stage_counts(4 * STAGE_BYTES, 4) == (4, 4)
    assert stage_counts(100 * STAGE_BYTES, 4) == (4, 4)
    assert stage_counts(100 * STAGE_BYTES, 0) == (1, 1)


def test_backward_takes_stages_for_memory_before_time_asks_for_them() -> None:
    assert stage_counts(MEMORY_BYTES - 1, 4) == (1, 1)
    assert stage_counts(MEMORY_BYTES, 4) == (1, 3)
    assert stage_counts(MEMORY_BYTES, 1) == (1, 1)


@given(st.integers(0, 40), st.integers(1, 12))
def test_stages_are_as_equal_as_possible_and_the_larger_ones_come_first(heads: int, count: int) -> None:
    borders = stage_borders(heads, count)
    sizes = [end - start for start, end in pairwise(borders)]
    assert (borders[0], borders[-1], len(sizes)) == (0, heads, count)
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)
