"""Tiling against the released choices: golden sizes, the frozen order, float noise, and the laws that degradation relies on."""

from __future__ import annotations

import math

import pytest
from eagle_data.errors import EagleDataError
from eagle_data.tiling import candidate_grids, choose_grid, tiles_for
from hypothesis import given, settings
from hypothesis import strategies as st

# Upstream section 2.2 and paper section 1 (s = 448, at most 12 tiles): (width, height) -> (cols, rows).
GOLDEN = {
    **{(n, n): (1, 1) for n in (224, 448, 578)},
    **{(n, n): (2, 2) for n in (579, 1000)},
    **dict.fromkeys([(640, 480), (800, 600), (1024, 768), (1344, 1008), (2560, 1440), (3840, 2160), (2000, 1300)], (4, 3)),
    **dict.fromkeys([(1280, 720), (1920, 1080)], (4, 2)),
    **dict.fromkeys([(2480, 3508), (1654, 2339), (1700, 2200)], (3, 4)),
    (1080, 1920): (2, 4),
    (300, 1200): (1, 4),
    (3000, 500): (6, 1),
    (896, 448): (2, 1),
    (500, 200): (5, 2),
    (4000, 4000): (3, 3),
    (2000, 2000): (3, 3),
    (4000, 500): (8, 1),
    (1536, 1024): (3, 2),
}
TOKENS = {(224, 224): 256, (1000, 1000): 1280, (640, 480): 3328, (1920, 1080): 2304, (896, 448): 768, (500, 200): 2816}

sides = st.integers(1, 8000)
caps = st.integers(1, 40)


@pytest.mark.parametrize(("size", "grid"), GOLDEN.items(), ids=lambda value: "x".join(map(str, value)))
def test_known_sizes_get_the_released_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert choose_grid(*size) == grid


@pytest.mark.parametrize(("size", "tokens"), TOKENS.items())
def test_known_sizes_cost_the_released_number_of_tokens(size: tuple[int, int], tokens: int) -> None:
    assert 256 * tiles_for(choose_grid(*size)) == tokens


def test_float_noise_decides_large_squares_as_in_the_release() -> None:
    assert choose_grid(2008, 2008) == (3, 3)
    assert choose_grid(2009, 2009) == (3, 4)
    assert sum(choose_grid(n, n) == (3, 4) for n in range(1157, 6000)) == 577


def test_the_candidates_for_twelve_tiles_are_the_35_grids_in_the_frozen_order() -> None:
    grids = candidate_grids(1, 12)
    assert len(grids) == len(set(grids)) == 35
    assert set(grids) == {(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12}
    assert grids[:10] == ((1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2), (4, 1), (1, 4), (5, 1), (1, 5))
    assert grids[-6:] == ((12, 1), (3, 4), (4, 3), (1, 12), (6, 2), (2, 6))


@given(low=st.integers(1, 40), high=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_candidates_are_exactly_the_grids_within_the_bounds_by_ascending_area(low: int, high: int) -> None:
    low, high = min(low, high), max(low, high)
    grids = candidate_grids(low, high)
    areas = [cols * rows for cols, rows in grids]
    assert areas == sorted(areas)
    assert sorted(grids) == [(i, j) for i in range(1, high + 1) for j in range(1, high + 1) if low <= i * j <= high]
    assert candidate_grids(low, high + 5)[: len(grids)] == grids


@given(width=sides, height=sides, fewer=caps, more=caps)
@settings(deadline=None, max_examples=150)
def test_allowing_more_tiles_never_gives_fewer(width: int, height: int, fewer: int, more: int) -> None:
    fewer, more = min(fewer, more), max(fewer, more)
    few = choose_grid(width, height, max_tiles=fewer)
    many = choose_grid(width, height, max_tiles=more)
    assert math.prod(few) <= math.prod(many) <= more
    assert tiles_for(few) <= tiles_for(many)


@given(width=sides, height=sides, cap=caps)
@settings(deadline=None, max_examples=100)
def test_no_grid_scores_higher_than_the_chosen_one(width: int, height: int, cap: int) -> None:
    def score(cols: int, rows: int) -> float:
        ratio = (cols * height) / (rows * width)
        return min(cols * rows * 448**2 / (width * height), 0.6) * min(ratio, 1 / ratio)

    best = max(score(*grid) for grid in candidate_grids(1, cap))
    assert score(*choose_grid(width, height, max_tiles=cap)) == pytest.approx(best, rel=1e-12)


def test_a_minimum_number_of_tiles_is_kept() -> None:
    assert math.prod(choose_grid(224, 224, min_tiles=4)) >= 4


def test_the_thumbnail_is_counted_only_for_more_than_one_tile() -> None:
    assert tiles_for((1, 1)) == 1
    assert tiles_for((3, 2)) == 7
    assert tiles_for((3, 2), use_thumbnail=False) == 6


@pytest.mark.parametrize(("width", "height", "bounds"), [(0, 5, (1, 12)), (5, -1, (1, 12)), (5, 5, (3, 2)), (5, 5, (0, 2))])
def test_impossible_sizes_and_bounds_are_refused(width: int, height: int, bounds: tuple[int, int]) -> None:
    with pytest.raises(EagleDataError, match=r"at least 1|need 1 <="):
        choose_grid(width, height, min_tiles=bounds[0], max_tiles=bounds[1])
