"""Frames shared by several videos: D'Hondt's rule, one frame a step, equal to handing them out one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from eagle_data.ads_shares import FrameShares
from hypothesis import given, settings
from hypothesis import strategies as st

WISHES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


def handed_out(wishes: Sequence[int], floors: Sequence[int]) -> list[tuple[int, ...]]:
    """The rule in its plainest form: the next frame goes to the first video of the largest wish per frame."""
    frames = list(floors)
    steps = [tuple(frames)]
    while frames != list(wishes):
        i = max((i for i, n in enumerate(frames) if n < wishes[i]), key=lambda i: (wishes[i] / (frames[i] + 1), -i))
        frames[i] += 1
        steps.append(tuple(frames))
    return steps


@given(wishes=WISHES, floor=st.integers(1, 10))
@settings(deadline=None, max_examples=200)
def test_steps_equal_handing_frames_out_one_by_one(wishes: list[int], floor: int):
    floors = [min(floor, wish) for wish in wishes]
    shares = FrameShares(wishes, floors)
    steps = [shares.at(step) for step in range(shares.steps + 1)]
    assert steps == handed_out(wishes, floors)
    for before, after in pairwise(steps):
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (len(wishes) - 1) + [1]


@given(wishes=WISHES, floor=st.integers(1, 6))
@settings(deadline=None, max_examples=100)
def test_no_frame_above_a_floor_would_be_better_given_to_another_video(wishes: list[int], floor: int):
    floors = [min(floor, wish) for wish in wishes]
    shares = FrameShares(wishes, floors)
    for step in range(0, shares.steps + 1, 7):
        held = shares.at(step)
        for i, n in enumerate(held):
            for j, m in enumerate(held):
                if n > floors[i] and m < wishes[j]:
                    assert wishes[i] / n >= wishes[j] / (m + 1)


@given(wishes=WISHES, most=st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_steps_beyond_a_limit_are_left_out_and_the_others_unchanged(wishes: list[int], most: int):
    floors = [1] * len(wishes)
    everything, limited = FrameShares(wishes, floors), FrameShares(wishes, floors, most=most)
    assert limited.steps == max(0, min(everything.steps, most - len(wishes)))
    assert [limited.at(step) for step in range(limited.steps + 1)] == [everything.at(step) for step in range(limited.steps + 1)]


def test_without_videos_there_is_one_empty_step():
    shares = FrameShares([], [])
    assert (shares.steps, shares.at(0)) == (0, ())
