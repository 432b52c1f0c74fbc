"""Costs of a video's frames equal what tokenising them gives, and the search finds the largest number that fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eagle_data.ads_costs import VideoCost, frames_before, largest, video_cost
from eagle_data.ads_headers import frame_tokens
from eagle_data.dialect import RELEASED, TRAINING, Dialect
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

RATES = st.sampled_from([0.5, 1.0, 8.0, 23.976, 24000 / 1001, 25.0, 29.97, 30.0, 60.0])
STARTS = st.sampled_from([0.0, 9.99, 9.995, 95.5, 3599.0]) | st.floats(0, 5000)


@given(total=st.integers(1, 30_000), data=st.data())
@settings(deadline=None, max_examples=300)
@example(total=2, data=None)
def test_frames_below_a_mark_are_counted_as_uniform_places_them(total: int, data: st.DataObject | None):
    cases = [(n, m) for n in (1, 2) for m in range(4)]
    if data is not None:
        n = data.draw(st.integers(1, min(total, 700)))
        indices = uniform(total, 25.0, n).indices
        near = data.draw(st.sampled_from(indices))
        cases = [(n, near), (n, near + 1), (n, data.draw(st.integers(-3, total + 3)))]
    for n, mark in cases:
        assert frames_before(mark, total, n) == sum(index < mark for index in uniform(total, 25.0, n).indices)


@given(total=st.integers(1, 9000), fps=RATES, start=STARTS, dialect=st.sampled_from([RELEASED, TRAINING]), data=st.data())
@settings(deadline=None, max_examples=120)
def test_later_frames_cost_what_tokenising_them_gives(
    total: int, fps: float, start: float, dialect: Dialect, data: st.DataObject, tokenizer: PromptTokenizer
):
    n = data.draw(st.integers(1, min(total, 150)))
    cost = video_cost(total, fps, start, tokenizer, dialect)
    assert cost.table is not None
    choice = uniform(total, fps, n, start=start)
    expected = sum(frame_tokens(tokenizer, dialect, i, time) for i, time in enumerate(choice.timestamps[1:], 2))
    assert cost.later(n) == expected
    assert replace(cost, table=None).later(n) == expected
    assert cost.first(n) == (choice.fps, choice.timestamps[0])


@given(total=st.integers(1, 4000), fps=RATES, start=STARTS)
@settings(deadline=None, max_examples=60)
def test_costs_rise_with_the_frames_where_they_are_said_to(total: int, fps: float, start: float, tokenizer: PromptTokenizer):
    cost = video_cost(total, fps, start, tokenizer, RELEASED)
    assert cost.rises

    def whole(n: int) -> int:
        rate, time = cost.first(n)
        return cost.later(n) + len(f"{rate:.2f}") + len(f"{time:.2f}")

    costs = [whole(n) for n in range(1, min(total, 400) + 1)]
    assert costs == sorted(costs)


def test_a_video_beyond_the_table_is_counted_frame_by_frame(tokenizer: PromptTokenizer):
    assert video_cost(10**6, 25.0, 0.0, tokenizer, RELEASED).table is None
    assert video_cost(100, 25.0, 999_998.0, tokenizer, RELEASED).table is None
    assert video_cost(10**7, 25.0, 0.0, tokenizer, RELEASED, shown=10**6).table is None
    far = video_cost(100, 25.0, 1e6, tokenizer, RELEASED)
    assert not far.rises
    choice = uniform(100, 25.0, 7, start=1e6)
    assert far.later(7) == sum(frame_tokens(tokenizer, RELEASED, i, t) for i, t in enumerate(choice.timestamps[1:], 2))


@given(total=st.integers(10**6, 2 * 10**7), n=st.integers(2, 600), fps=st.sampled_from([24000 / 1001, 30.0, 60.0]))
@settings(deadline=None, max_examples=40)
def test_a_video_of_millions_of_frames_has_the_table_where_few_of_them_are_shown(
    total: int, n: int, fps: float, tokenizer: PromptTokenizer
):
    cost = video_cost(total, fps, 0.0, tokenizer, RELEASED, shown=1000)
    assert cost.table is not None
    assert cost.rises
    choice = uniform(total, fps, n)
    assert cost.later(n) == sum(frame_tokens(tokenizer, RELEASED, i, t) for i, t in enumerate(choice.timestamps[1:], 2))


def test_the_form_tells_apart_what_costs_differently(tokenizer: PromptTokenizer):
    cost: VideoCost = video_cost(3000, 30.0, 0.0, tokenizer, RELEASED)
    assert cost.form(10) == cost.form(200)
    assert cost.form(1) != cost.form(10)  # one frame stands in the middle, at 50 s
    assert cost.form(3000) != cost.form(200)  # 30.00 fps
    assert replace(cost, table=None).form(10) != replace(cost, table=None).form(200)


@given(fitting=st.lists(st.booleans(), min_size=1, max_size=40), rising=st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_the_search_finds_the_largest_step_that_fits(fitting: list[bool], rising: int):
    fitting[0] = True
    high = len(fitting) - 1
    assert largest(lambda step: fitting[step], high, rises=False) == max(step for step, fits in enumerate(fitting) if fits)
    assert largest(lambda step: step < rising, high, rises=True) == min(rising - 1, high)


def test_a_bisection_takes_few_looks():
    looks: list[int] = []
    assert largest(lambda step: not looks.append(step) and step <= 700, 1000, rises=True) == 700
    assert len(looks) <= 11


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_video_of_few_frames(n: int, tokenizer: PromptTokenizer):
    cost = video_cost(3, 25.0, 0.0, tokenizer, RELEASED)
    assert cost.later(n) == (n - 1) * frame_tokens(tokenizer, RELEASED, 2, 0.0)
