"""Segments: one true frame out of each stretch of time, for as little decoding as the stream allows."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from eagle_data.errors import MediaError
from eagle_data.video import open_video

from ..media_files import number_in, write_video

GOP = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("segments") / "clip.mp4", 60, options=GOP)


@pytest.mark.parametrize("count", [1, 3, 5, 7, 12, 30, 60])
def test_each_stretch_gives_one_of_its_frames_with_its_true_time(clip: Path, count: int) -> None:
    with open_video(clip) as video:
        found = video.segments(count)
        edges = video.metadata.duration * np.arange(count + 1) / count
    assert len(found) == count
    assert (found.seconds >= edges[:-1] - 1e-6).all()
    assert (found.seconds < edges[1:] - 1e-6).all()
    assert [number_in(picture) for picture in found] == np.round(found.seconds * 25).astype(int).tolist()


def test_as_many_stretches_as_keyframes_cost_one_picture_each(clip: Path) -> None:
    with open_video(clip) as video:
        found = video.segments(5)
    assert found.decoded == 5
    assert found.indices.tolist() == [0, 12, 24, 36, 48]


def test_segments_decode_less_than_uniform_frames(clip: Path) -> None:
    with open_video(clip) as video:
        assert video.segments(10).decoded < 0.65 * video.frames_at(np.linspace(0, 59, 10).round()).decoded


def test_a_stretch_without_a_frame_shows_what_is_on_display(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mp4", 4, pts=[0, 100, 900, 1000], time_base=Fraction(1, 1000))
    with open_video(path) as video:
        assert [number_in(picture) for picture in video.segments(11)][:10] == [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]


def test_segments_of_a_clip_and_of_uneven_times(tmp_path: Path) -> None:
    pts = list(accumulate(17 + 31 * (number % 5) for number in range(40)))
    path = write_video(tmp_path / "uneven.mkv", 40, options=GOP, pts=pts, time_base=Fraction(1, 1000))
    with open_video(path, start=0.5, end=2.0) as video:
        found = video.segments(4, size=(48, 32), resize="swscale")
        edges = video.timestamps[0] + video.metadata.duration * np.arange(5) / 4
    assert found.pixels.shape == (4, 32, 48, 3)
    assert ((found.seconds >= edges[:-1] - 1e-6) & (found.seconds < edges[1:])).all()


def test_pictures_have_segments_too_and_none_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(10)]
    with open_video(pictures) as video:
        assert video.segments(5).pixels[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8]
        with pytest.raises(MediaError, match="0 segments"):
            video.segments(0)
