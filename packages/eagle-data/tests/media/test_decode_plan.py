"""Plans as arithmetic: every target once, from a keyframe shown at or before it, and the cheapest frame of a segment."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from eagle_data.media.decode_plan import cheapest_of_segments, plan_groups
from eagle_data.media.frame_index import FrameIndex, StreamInfo
from eagle_data.media.packet_table import PacketTable
from hypothesis import given
from hypothesis import strategies as st


def made(gops: list[int], *, leading: int = 0) -> FrameIndex:
    """GOPs of the given lengths; `leading` pictures of each but the first are shown before its keyframe (an open GOP)."""
    pts: list[int] = []
    shown = 0
    for number, length in enumerate(gops):
        ahead = min(leading, length - 1) if number else 0
        pts += [shown + ahead, *range(shown, shown + ahead), *range(shown + ahead + 1, shown + length)]
        shown += length
    count = len(pts)
    keyframe = np.zeros(count, bool)
    keyframe[np.cumsum([0, *gops[:-1]])] = True
    table = PacketTable(
        pts=np.array(pts, np.int64),
        dts=np.arange(count, dtype=np.int64),
        duration=np.ones(count, np.int64),
        keyframe=keyframe,
        size=np.ones(count, np.int64),
        offset=np.arange(count, dtype=np.int64),
        discard=np.zeros(count, bool),
        time_base=Fraction(1, 25),
        stream=StreamInfo("h264", b"", 8, 8),
    )
    index = table.as_index()
    assert index is not None
    return index


GOPS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(GOPS, st.integers(0, 3), st.data())
def test_every_target_is_in_one_group_that_starts_at_a_keyframe_it_may_lean_on(gops: list[int], leading: int, data) -> None:
    index = made(gops, leading=leading)
    frames = data.draw(st.lists(st.integers(0, len(index) - 1), unique=True, min_size=1))
    groups = plan_groups(index, frames)
    planned = [target for group in groups for target in group.targets]
    assert sorted(planned) == sorted(index.display[frames].tolist())
    for group in groups:
        assert index.keyframe[group.start]
        assert list(group.targets) == sorted(group.targets)
        for target in group.targets:
            assert group.start <= target
            assert index.pts[group.start] <= index.pts[target]
    for before, after in pairwise(groups):
        assert before.stop <= after.start


@given(GOPS, st.data())
def test_closed_gops_cost_no_more_than_from_the_nearest_keyframe_to_the_last_target(gops: list[int], data) -> None:
    index = made(gops)
    frames = data.draw(st.lists(st.integers(0, len(index) - 1), unique=True, min_size=1))
    keys = np.flatnonzero(index.keyframe)
    last = {}
    for target in index.display[frames].tolist():
        key = int(keys[np.searchsorted(keys, target, side="right") - 1])
        last[key] = max(last.get(key, 0), target)
    assert sum(group.cost for group in plan_groups(index, frames)) == sum(target + 1 - key for key, target in last.items())


def test_a_picture_shown_before_its_keyframe_is_decoded_from_the_one_before() -> None:
    index = made([6, 6], leading=2)
    assert index.display[6] == 7
    (group,) = plan_groups(index, [6])
    assert (group.start, group.targets) == (0, (7,))


@given(GOPS, st.integers(1, 60))
def test_a_segment_gives_its_keyframe_or_the_frame_nearest_behind_one(gops: list[int], count: int) -> None:
    index = made(gops)
    chosen = cheapest_of_segments(index, 0, len(index), count)
    edges = np.arange(count + 1) * len(index) / count
    keys = set(np.flatnonzero(index.keyframe).tolist())
    for number, frame in enumerate(chosen.tolist()):
        inside = [other for other in range(len(index)) if edges[number] - 1e-4 <= other < edges[number + 1] - 1e-4]
        if not inside:
            assert frame == int(edges[number])
            continue
        assert frame in inside
        if keys & set(inside):
            assert frame in keys
        else:
            assert frame == inside[0]


def test_segments_of_a_clip_stay_inside_it() -> None:
    index = made([10, 10, 10])
    chosen = cheapest_of_segments(index, 5, 25, 4)
    assert chosen.tolist() == [5, 10, 15, 20]
