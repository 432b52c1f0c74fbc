"""Clips of a video: where they are cut, which seconds of them are looked at, and the frames there.

The cutting is pure arithmetic: clips cover a video without gap or overlap. Frames are those on display at a second, so every
clip has some, however slow the video is. Nothing is written: a clip is a video's name and two seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from eagle_data.errors import MediaError
from eagle_data.video import Video

__all__ = ["Clip", "cut", "fingerprint", "fitted", "frames_of", "jpeg", "moments"]

_LEAST = 1e-3  # seconds: what is shorter than this is rounding, not a clip


@dataclass(frozen=True)
class Clip:
    """A stretch ``start <= t < end`` of a video, in seconds from its first frame.

    Attributes:
        video: its path relative to the recipe's root, with slashes.
    """

    video: str
    start: float
    end: float

    @property
    def id(self) -> str:
        """Unique among clips of a root."""
        return f"{self.video}@{self.start:.3f}-{self.end:.3f}"


def cut(duration: float, seconds: float, shortest: float) -> list[tuple[float, float]]:
    """Cut `duration` seconds into stretches of `seconds`; a rest shorter than `shortest` joins the one before it.

    The stretches start at 0, end at `duration`, and each begins where the one before it ends.
    """
    whole = int(duration / seconds)
    edges = [i * seconds for i in range(whole)] or [0.0]
    if whole and duration - whole * seconds >= max(shortest, _LEAST):
        edges.append(whole * seconds)
    return list(pairwise([*edges, duration]))


def moments(start: float, end: float, fps: float, most: int) -> list[float]:
    """The middles of equal parts of a stretch: `fps` a second, at least one and at most `most`, ascending, in seconds."""
    count = max(1, min(most, int((end - start) * fps + 1e-6)))
    return [start + (i + 0.5) * (end - start) / count for i in range(count)]


def frames_of(video: Video, seconds: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The intact frames on display at `seconds`: uint8 ``[n, height, width, 3]``, `size` is ``(width, height)``.

    Raises MediaError where all of them are damaged.
    """
    frames = video.frames_at(seconds=seconds, size=size, resize="swscale")
    intact = frames.pixels[~frames.corrupt]
    if not len(intact):
        span = f"{seconds[0]:.1f} s to {seconds[-1]:.1f} s"
        raise MediaError(frames.source, f"every frame looked at from {span} is damaged", "Leave the video out or repair it")
    return intact


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """``(width, height)`` scaled down, never up, so that the longer side is at most `longest`."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def jpeg(picture: np.ndarray, quality: int) -> bytes:
    """A picture, uint8 ``[height, width, 3]``, as a JPEG file."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=quality)
    return data.getvalue()


def fingerprint(path: Path) -> str:
    """Size and modification time of a file: what tells one content from another here."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
