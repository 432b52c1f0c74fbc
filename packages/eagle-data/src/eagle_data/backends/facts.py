"""What must be known of a file before another library may be trusted with it, taken from this package's own index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MediaError

__all__ = ["VideoFacts", "facts_of"]


@dataclass(frozen=True, eq=False)
class VideoFacts:
    """A file as this package sees it.

    Attributes:
        container: what the first bytes say: "mp4", "matroska", "mpegts", "avi" or "other".
        codec: FFmpeg's name.
        times: float64 ``[frames + 1]``, as `video_frames.FrameReader` has them.
        rate: nominal frames per second, or None.
        width: as displayed.
        height: as displayed.
        rotation: degrees clockwise that upright pictures were turned by.
        reordered: frames are displayed in another order than decoded.
        open_gop: frames decoded after a keyframe are displayed before it.
        hidden: packets that are decoded and not displayed.
        timed: the container stores presentation times.
    """

    container: str
    codec: str
    times: np.ndarray
    rate: float | None
    width: int
    height: int
    rotation: int
    reordered: bool
    open_gop: bool
    hidden: int
    timed: bool

    def __len__(self) -> int:
        return len(self.times) - 1


def facts_of(source: Any, label: str) -> VideoFacts:
    """Index a source with this package's own reader. Raises MediaError, also for what is no video container."""
    from ..video import open_video
    from ..video_report import groups_of

    head = _head(source, label)
    with open_video(source) as video:
        index = video.index
        if index is None:
            raise MediaError(label, "is no video container", "Use backend='eagle', which reads animations and pictures too")
        groups, data = groups_of(index), video.metadata
        return VideoFacts(
            container=_container(head),
            codec=index.stream.codec,
            times=index.times,
            rate=float(index.stream.rate) if index.stream.rate else None,
            width=data.width,
            height=data.height,
            rotation=data.rotation,
            reordered=groups.reordered,
            open_gop=groups.open,
            hidden=groups.hidden,
            timed=index.timed,
        )


def _head(source: Any, label: str) -> bytes:
    from ..images import local_path

    if isinstance(source, bytes):
        return source[:400]
    if hasattr(source, "read") and hasattr(source, "seek"):
        source.seek(0)
        head = source.read(400)
        source.seek(0)
        return head
    try:
        with open(local_path(str(source)), "rb") as file:
            return file.read(400)
    except OSError as error:
        raise MediaError(
            label, f"cannot be read ({error.strerror})", "Give a local file; other backends fetch nothing"
        ) from error


def _container(head: bytes) -> str:
    if head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof"):
        return "mp4"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if (head[:1] == b"\x47" and head[188:189] == b"\x47") or (head[4:5] == b"\x47" and head[196:197] == b"\x47"):
        return "mpegts"
    return "other"
