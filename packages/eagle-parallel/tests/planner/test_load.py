"""Closed forms of a layout's load against plans made piece by piece."""

from __future__ import annotations

from itertools import accumulate

import pytest
from eagle_parallel import Plan, make_plan
from eagle_parallel.planner.hardware import TILE
from eagle_parallel.planner.load import LAYOUTS, TILE_OVERHEAD, LayoutName, rank_load, tiled_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

VIDEO = [30011, 17389, 9127, 5003, 2411, 1021, 389, 185]
lengths_of_packs = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 6000)), min_size=1, max_size=40)


def _plan(lengths: list[int], ring: int, layout: LayoutName) -> Plan:
    return make_plan([0, *accumulate(lengths)], ring, layout=layout)


def _cut_tokens(plan: Plan, lengths: list[int]) -> int:
    owners: dict[int, set[int]] = {}
    for rank in range(plan.cp):
        for document, _, _ in plan.pieces[rank]:
            owners.setdefault(document, set()).add(rank)
    return sum(lengths[document] for document, ranks in owners.items() if len(ranks) > 1)


@given(first=st.integers(0, 700), rows=st.integers(0, 700))
def test_tiled_pairs_count_what_a_kernel_of_whole_tiles_visits(first: int, rows: int) -> None:
    expected = 0
    for start in range(0, rows, TILE):
        visible = first + min(start + TILE, rows)
        expected += TILE * (visible + TILE_OVERHEAD)
    assert tiled_pairs(first, rows) == expected


@given(lengths=lengths_of_packs, ring=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_zigzag_work_is_that_of_the_plan_within_the_plans_own_bound(lengths: list[int], ring: int) -> None:
    plan, load = _plan(lengths, ring, "zigzag"), rank_load(lengths, ring, "zigzag")
    assert load.exact_pairs == pytest.approx(sum(plan.causal_work(rank) for rank in range(ring)) / ring)
    for rank in range(ring):
        assert abs(plan.causal_work(rank) - load.exact_pairs) <= 2 * plan.tokens
    assert load.query_rows == pytest.approx(plan.tokens / ring)


@given(lengths=lengths_of_packs, ring=st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_contiguous_load_is_exactly_that_of_the_busiest_rank(lengths: list[int], ring: int) -> None:
    plan, load = _plan(lengths, ring, "contiguous"), rank_load(lengths, ring, "contiguous")
    assert load.exact_pairs == max(plan.causal_work(rank) for rank in range(ring))
    assert load.pairs == max(sum(tiled_pairs(start, end - start) for _, start, end in pieces) for pieces in plan.pieces)
    assert load.moved_tokens == pytest.approx(_cut_tokens(plan, lengths) * (ring - 1) / ring)
    assert load.mean_pairs == pytest.approx(sum(plan.causal_work(rank) for rank in range(ring)) / ring)


@given(chunk_tiles=st.integers(1, 20), ring=st.integers(1, 8))
def test_zigzag_tiles_of_chunks_that_are_whole_tiles_equal_every_ranks(chunk_tiles: int, ring: int) -> None:
    lengths = [2 * ring * TILE * chunk_tiles]
    load, chunk = rank_load(lengths, ring, "zigzag"), TILE * chunk_tiles
    for rank in range(ring):  # head and tail chunk apart, joined in the innermost rank or not
        head, tail = tiled_pairs(rank * chunk, chunk), tiled_pairs(lengths[0] - (rank + 1) * chunk, chunk)
        assert load.pairs == pytest.approx(head + tail)


@given(lengths=lengths_of_packs, ring=st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_zigzag_tiles_of_any_chunks_are_near_the_mean_rank_of_the_plan(lengths: list[int], ring: int) -> None:
    plan, load = _plan(lengths, ring, "zigzag"), rank_load(lengths, ring, "zigzag")
    mean = sum(tiled_pairs(start, end - start) for pieces in plan.pieces for _, start, end in pieces) / ring
    pieces_of_a_rank = max(len(pieces) for pieces in plan.pieces)
    # Rounding a chunk to whole rows can add or spare one tile of each, and the innermost rank's two chunks are one run.
    assert abs(load.pairs - mean) <= pieces_of_a_rank * TILE * (max(lengths) + 2 * TILE + TILE_OVERHEAD)


@pytest.mark.parametrize("ring", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("lengths", [VIDEO, [64] * 300, [5000, 700, 30, 30, 1200, 4, 9000], [1], [100_000]])
def test_balanced_follows_the_layouts_own_rule(lengths: list[int], ring: int) -> None:
    plan, load = _plan(lengths, ring, "balanced"), rank_load(lengths, ring, "balanced")
    if len(lengths) > 1:  # of one token, whoever holds it, the layout cannot cut anything
        assert load.moved_tokens == pytest.approx(_cut_tokens(plan, lengths) * (ring - 1) / ring, abs=0.01 * plan.tokens)
    busiest = max(plan.causal_work(rank) for rank in range(ring))
    assert load.exact_pairs == pytest.approx(busiest, rel=0.02, abs=2 * plan.tokens)


def test_contiguous_costs_two_minus_one_over_p_of_one_document() -> None:
    for ring in (2, 4, 8):
        assert rank_load([65536], ring, "contiguous").imbalance == pytest.approx(2 - 1 / ring, rel=1e-3)
        assert rank_load([65536], ring, "zigzag").imbalance == 1.0


def test_short_documents_are_counted_as_fragmented_by_zigzag_only() -> None:
    lengths = [200] * 100
    assert rank_load(lengths, 4, "zigzag").short_rows == 1.0
    assert rank_load(lengths, 4, "balanced").short_rows == 0.0
    assert rank_load(lengths, 4, "balanced").moved_tokens == 0
    assert rank_load(lengths, 4, "zigzag").pairs > 3 * rank_load(lengths, 4, "balanced").pairs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_holds_the_whole_pack_under_every_layout(layout: LayoutName) -> None:
    load = rank_load(VIDEO, 1, layout)
    assert load.moved_tokens == 0
    assert load.imbalance == 1.0
    assert load.pairs == sum(tiled_pairs(0, length) for length in VIDEO)


def test_wrong_arguments_name_the_mend() -> None:
    with pytest.raises(ValueError, match="ring must be a positive integer"):
        rank_load([5], 0, "zigzag")
    with pytest.raises(ValueError, match="use one of zigzag, balanced, contiguous"):
        rank_load([5], 2, "striped")  # pyright: ignore[reportArgumentType]
