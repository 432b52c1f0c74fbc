"""Chosen frames of a video as picture files, with `frames.jsonl` that says which frame and second each one is.

Files appear whole, `frames.jsonl` last. Choosing is `policies`, decoding is `video`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import MediaError
from .policies import Policy, choose
from .video import Video

__all__ = ["Chosen", "chosen_frames", "write_frames"]

_FORMATS = {"png": ("PNG", {}), "jpg": ("JPEG", {"quality": 95, "subsampling": 0}), "webp": ("WEBP", {"lossless": True})}


@dataclass(frozen=True, eq=False)
class Chosen:
    """One frame of a choice: uint8 ``[height, width, 3]``, its number, its second on display, and whether it is damaged."""

    picture: np.ndarray
    index: int
    second: float
    corrupt: bool


def chosen_frames(video: Video, policy: Policy, size: tuple[int, int] | None = None, *, at_once: int = 64) -> Iterator[Chosen]:
    """Decode what `policy` chooses of `video` (not itself a clip), a bounded number of frames at a time. Raises MediaError."""
    indices = choose(video, policy).indices
    for first in range(0, len(indices), at_once):
        frames = video.frames_at(indices[first : first + at_once], size=size)
        for picture, index, second, bad in zip(frames, frames.indices, frames.seconds, frames.corrupt, strict=True):
            yield Chosen(picture, int(index), float(second), bool(bad))


def write_frames(
    video: Video, policy: Policy, out: Path, *, kind: str = "png", size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Write the chosen frames to the folder `out` as `frame-<number>.<kind>`, and `frames.jsonl`.

    Args:
        video: open, whole.
        policy: which frames.
        out: made when missing.
        kind: png, jpg or webp (lossless).
        size: ``(width, height)``; None keeps the video's.

    Returns:
        Files written, and how many of them are damaged frames.

    Raises:
        MediaError: an unknown kind, or what the reader raises.
    """
    if kind not in _FORMATS:
        raise MediaError(str(out), f"{kind!r} is no kind of picture file", f"Use {', '.join(_FORMATS)}")
    form, options = _FORMATS[kind]
    out.mkdir(parents=True, exist_ok=True)
    lines: dict[str, dict[str, Any]] = {}
    for frame in chosen_frames(video, policy, size):
        name = f"frame-{frame.index:06d}.{kind}"
        part = out / f"{name}.part"
        Image.fromarray(frame.picture).save(part, form, **options)
        os.replace(part, out / name)
        lines[name] = {"file": name, "frame": frame.index, "second": round(frame.second, 6), "corrupt": frame.corrupt}
    part = out / "frames.jsonl.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")
    os.replace(part, out / "frames.jsonl")
    return len(lines), sum(line["corrupt"] for line in lines.values())
