"""Clips cover a video without gap or overlap, and every one of them has frames to look at."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from eagle_data.curate.clips import Clip, cut, fitted, frames_of, jpeg, moments
from eagle_data.errors import MediaError
from eagle_data.video import open_video
from hypothesis import given, settings
from hypothesis import strategies as st

from ..media_files import number_in, write_video

DURATIONS = st.floats(0.04, 20000, allow_nan=False)


@settings(deadline=None)
@given(DURATIONS, st.floats(0.5, 120), st.floats(0, 20))
def test_clips_cover_the_video_and_none_but_an_only_one_is_short(duration: float, seconds: float, shortest: float):
    clips = cut(duration, seconds, shortest)
    assert clips[0][0] == 0
    assert clips[-1][1] == duration
    assert all(a[1] == b[0] for a, b in pairwise(clips))
    assert all(start < end for start, end in clips)
    for start, end in clips[:-1]:
        assert end - start == pytest.approx(seconds)
    length = clips[-1][1] - clips[-1][0]
    assert length < seconds + max(shortest, 1e-3) + 1e-6
    assert len(clips) == 1 or length >= min(shortest, seconds) - 1e-6


@pytest.mark.parametrize(
    ("duration", "ends"), [(30.0, [10, 20, 30]), (31.9, [10, 20, 31.9]), (32.0, [10, 20, 30, 32]), (4.0, [4]), (11.0, [11])]
)
def test_a_rest_below_two_seconds_joins_the_clip_before_it(duration: float, ends: list[float]):
    assert [end for _, end in cut(duration, 10, 2)] == ends


@settings(deadline=None)
@given(DURATIONS, DURATIONS, st.floats(0.01, 60), st.integers(1, 100))
def test_moments_lie_within_their_stretch_evenly(start: float, length: float, fps: float, most: int):
    found = moments(start, start + length, fps, most)
    assert 1 <= len(found) <= most
    assert len(found) <= max(1, length * fps + 1e-3)
    assert all(start <= second < start + length for second in found)
    assert np.diff(found) == pytest.approx(np.full(len(found) - 1, length / len(found)), rel=1e-3)


def test_frames_are_those_on_display(tmp_path: Path):
    with open_video(write_video(tmp_path / "v.mp4", frames=50)) as video:
        frames = frames_of(video, [0.02, 1.0, 1.99], (96, 64))
    assert [number_in(frame) for frame in frames] == [0, 25, 49]


def test_a_slow_video_has_a_frame_in_every_clip(tmp_path: Path):
    path = write_video(tmp_path / "slow.mp4", frames=3, pts=[0, 25 * 30, 25 * 60])
    with open_video(path) as video:
        seen = [number_in(frames_of(video, moments(a, b, 1, 5), (96, 64))[0]) for a, b in cut(video.metadata.duration, 10, 2)]
    assert seen == [0, 0, 0, 1, 1, 1]


def test_a_stretch_of_damaged_frames_says_so(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=50, options={"g": "25"})
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    length = int.from_bytes(data[at - 8 : at - 4], "big") - 8
    data[at + length // 2 : at + length] = (
        np.random.default_rng(0).integers(0, 256, length - length // 2, dtype=np.uint8).tobytes()
    )
    path.write_bytes(bytes(data))
    with open_video(path) as video, pytest.raises(MediaError, match="damaged"):
        frames_of(video, [1.9], (96, 64))


def test_names_sizes_and_pictures():
    assert Clip("a/b.mp4", 0, 12345.678).id == "a/b.mp4@0.000-12345.678"
    assert fitted(1920, 1080, 448) == (448, 252)
    assert fitted(100, 50, 448) == (100, 50)
    assert fitted(10000, 1, 100) == (100, 1)
    assert jpeg(np.zeros((8, 8, 3), np.uint8), 80)[:2] == b"\xff\xd8"
