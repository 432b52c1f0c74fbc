"""Policies as values: the laws each keeps on any timeline, and texts that come back as the same policy."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from eagle_data.errors import EagleDataError
from eagle_data.policies import Clip, Policy, Rate, Seconds, Segments, Timeline, Training, Uniform, choose, parse_policy, take
from eagle_data.sampling import released_policy, training_policy, uniform
from eagle_data.video import open_video
from hypothesis import given, settings
from hypothesis import strategies as st

from .media_files import number_in, write_video

rates = st.sampled_from([1.0, 12.5, 23.976, 25.0, 29.97, 30.0, 60.0])
inner_policies = st.one_of(
    st.builds(Uniform, st.integers(1, 64)),
    st.builds(Rate, st.floats(0.1, 30), st.integers(2, 8), st.integers(8, 64)),
    st.builds(Training, st.floats(0.1, 30), st.integers(1, 8), st.integers(8, 64)),
    st.builds(Segments, st.integers(1, 8)),
)


def steady(frames: int, fps: float = 25.0, start: float = 0.0) -> Timeline:
    return Timeline(start + np.arange(frames) / fps, start + frames / fps, fps)


@st.composite
def uneven(draw: st.DrawFn) -> Timeline:
    """A timeline of a variable rate with its mean as fps."""
    gaps = np.array(draw(st.lists(st.floats(0.005, 2.0), min_size=8, max_size=200)))
    seconds = np.concatenate([[0.0], np.cumsum(gaps)])
    return Timeline(seconds[:-1], float(seconds[-1]), len(gaps) / float(seconds[-1]))


@given(total=st.integers(2, 100_000), fps=rates, n=st.integers(1, 512))
@settings(deadline=None, max_examples=100)
def test_policies_on_a_whole_file_are_the_functions_they_name(total: int, fps: float, n: int) -> None:
    timeline = steady(total, fps)
    assert Uniform(n).choose(timeline) == uniform(total, fps, min(n, total))
    assert Rate().choose(timeline) == released_policy(total, fps)
    assert Training(4, 8, 24).choose(timeline) == training_policy(total, fps, fps=4, min_frames=8, max_frames=24)


@given(timeline=uneven(), policy=inner_policies, data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_clip_takes_only_frames_of_the_clip_and_prints_the_clips_own_rate(
    timeline: Timeline, policy: Uniform | Rate | Training | Segments, data: st.DataObject
) -> None:
    start = data.draw(st.floats(0, timeline.end * 0.9))
    end = data.draw(st.floats(start, timeline.end * 1.5))
    inside = [i for i, t in enumerate(timeline.seconds) if start - 1e-6 <= t < end - 1e-6]  # the reader's tolerance
    clip = Clip(policy, start, end)
    try:
        choice = clip.choose(timeline)
    except EagleDataError:
        assert len(inside) < (2 if isinstance(policy, Rate) else 1)
        return
    assert set(choice.indices) <= set(inside)
    assert list(choice.indices) == sorted(choice.indices if isinstance(policy, Segments) else set(choice.indices))
    stop = inside[-1] + 1
    length = (timeline.seconds[stop] if stop < len(timeline) else timeline.end) - timeline.seconds[inside[0]]
    if not isinstance(policy, Training) or len(inside) > policy.min_frames:
        assert choice.fps == pytest.approx(len(choice) / length, rel=0.011)


def test_a_clip_keeps_the_files_clock() -> None:
    timeline = steady(1000)
    choice = Clip(Uniform(3), 10, 20).choose(timeline)
    assert choice.indices == (250, 374, 499)
    assert choice.timestamps == pytest.approx((10.0, 14.96, 19.96))
    assert Clip(Rate(2.0), 10, 20).choose(timeline).fps == pytest.approx(2.0)
    assert Clip(Training(4, 8, 24), 10, 20).choose(timeline).timestamps[0] == pytest.approx(10.0)
    assert Clip(Uniform(2), end=1).choose(timeline).indices == (0, 24)


@given(timeline=uneven(), share=st.floats(0, 0.999))
@settings(deadline=None, max_examples=200)
def test_seconds_take_the_frame_on_display(timeline: Timeline, share: float) -> None:
    second = share * timeline.end
    (index,) = Seconds((second,)).choose(timeline).indices
    assert timeline.seconds[index] <= second + 1e-6
    assert index == len(timeline) - 1 or timeline.seconds[index + 1] > second


@given(timeline=st.one_of(uneven(), st.builds(steady, st.integers(1, 50_000))), n=st.integers(1, 600))
@settings(deadline=None, max_examples=150)
def test_segments_are_equal_stretches_of_time_and_hold_every_frame_once(timeline: Timeline, n: int) -> None:
    bounds = Segments(n).bounds(timeline)
    assert len(bounds) == n
    assert (bounds[0][0], bounds[-1][1]) == (0, len(timeline))
    assert all(stop == first for (_, stop), (first, _) in pairwise(bounds))
    length = timeline.end / n
    for number, (first, stop) in enumerate(bounds):
        inside = timeline.seconds[first:stop]
        assert ((inside >= number * length - 2e-6) & (inside < (number + 1) * length + 2e-6)).all()
    chosen = Segments(n).choose(timeline)
    for number, second in enumerate(chosen.timestamps):
        first, stop = bounds[number]
        assert second < (number + 1) * length
        assert second >= number * length - 2e-6 or first == stop


def test_segments_of_a_video_are_what_the_reader_takes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=100, options={"g": "24"})
    with open_video(path) as video:
        whole, clip = choose(video, Segments(6)), choose(video, Clip(Segments(3), 1.0, 3.0))
        assert list(whole.indices) == video.segments(6).indices.tolist()
        assert [number_in(picture) for picture in take(video, Segments(6))] == list(whole.indices)
    with open_video(path, start=1.0, end=3.0) as cut:
        assert [i - 25 for i in clip.indices] == cut.segments(3).indices.tolist()
        assert clip.timestamps == pytest.approx(cut.segments(3).seconds)


@given(
    inner=st.one_of(inner_policies, st.builds(Seconds, st.lists(st.integers(0, 99), min_size=1).map(tuple))),
    clip=st.one_of(st.none(), st.tuples(st.one_of(st.none(), st.integers(0, 9)), st.one_of(st.none(), st.integers(10, 99)))),
)
def test_a_policys_text_is_the_same_policy_again(inner: Policy, clip: tuple[int | None, int | None] | None) -> None:
    if isinstance(inner, Rate | Training):
        inner = type(inner)(round(inner.fps, 2), inner.min_frames, inner.max_frames)
    policy = inner if clip is None else Clip(inner, *clip)  # pyright: ignore[reportArgumentType]  # inner is never a Clip here
    assert parse_policy(str(policy)) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize(
    "text", ["", "uniform", "uniform:x", "uniform:8,9", "fps:2,3", "seconds:", "uniform:8@", "uniform:8@a-b", "even:8"]
)
def test_a_text_that_is_no_policy_is_told_the_forms(text: str) -> None:
    with pytest.raises(EagleDataError, match="uniform:N"):
        parse_policy(text)


def test_impossible_choices_are_named() -> None:
    with pytest.raises(EagleDataError, match="nothing is shown at 4 s"):
        Seconds((4.0,)).choose(steady(100))
    with pytest.raises(EagleDataError, match="no second"):
        Seconds(()).choose(steady(100))
    with pytest.raises(EagleDataError, match="no frame appears from 9 s"):
        Clip(Uniform(1), 9).choose(steady(100))
    with pytest.raises(EagleDataError, match="at least one"):
        Segments(0).choose(steady(5))


def test_take_gives_the_pictures_of_the_choice(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "v.mp4", frames=50)) as video:
        assert [number_in(picture) for picture in take(video, Clip(Uniform(3), 1.0, 1.4))] == [25, 29, 34]
