"""What is inside a video, in plain lines: streams, groups of pictures, rate, hidden pictures, damage.

Reads the index that the reader made anyway, and lists the streams with PyAV; decodes only when asked to look for damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .fetch import Fetch
    from .media.frame_index import FrameIndex
    from .video import Video

__all__ = ["Groups", "damage_lines", "groups_of", "keyframe_seconds", "structure_lines"]

_AT_ONCE = 256


@dataclass(frozen=True)
class Groups:
    """How the packets of a video hang together.

    Attributes:
        lengths: displayed and hidden frames of each group, from keyframe to keyframe in decode order.
        reordered: whether frames are displayed in another order than decoded (B-frames).
        open: whether frames decoded after a keyframe are displayed before it.
        hidden: packets that are decoded and not displayed.
    """

    lengths: tuple[int, ...]
    reordered: bool
    open: bool
    hidden: int


def groups_of(index: FrameIndex) -> Groups:
    """The groups of an index; packets before the first keyframe are a group of their own."""
    packets = len(index.size)
    keys = np.flatnonzero(index.keyframe)
    starts = np.unique(np.concatenate([[0], keys]))
    lengths = np.diff(np.append(starts, packets))
    rank = index.rank
    shown = rank[rank >= 0]
    is_open = False
    for first, stop in zip(keys, np.append(keys[1:], packets), strict=True):
        leading = rank[first + 1 : stop]
        is_open |= rank[first] >= 0 and bool(((leading >= 0) & (leading < rank[first])).any())
    return Groups(tuple(map(int, lengths)), bool((np.diff(shown) < 0).any()), bool(is_open), packets - len(index.display))


def keyframe_seconds(index: FrameIndex) -> list[float]:
    """Display times of the keyframes that are displayed."""
    ranks = index.rank[index.keyframe]
    return np.sort(index.times[ranks[ranks >= 0]]).tolist()


def structure_lines(source: str, video: Video, fetch: Fetch | None = None) -> Iterator[str]:
    """Lines on streams, groups and rate of an open video; only the rate where the source has no container.

    `fetch` is leave to look at an address once more. Raises MediaError.
    """
    if video.index is not None:
        yield from (f"stream: {line}" for line in _streams(source, fetch))
        groups = groups_of(video.index)
        lengths = sorted(groups.lengths)
        spread = f"{lengths[0]} to {lengths[-1]} frames"
        if lengths[0] == lengths[-1]:
            spread = f"{lengths[0]} frames" if lengths[0] > 1 else "1 frame"
        kinds = [text for text, true in (("B-frames", groups.reordered), ("open", groups.open)) if true]
        middle = f", median {lengths[len(lengths) // 2]}" if len(lengths) > 2 and lengths[0] != lengths[-1] else ""
        yield f"groups of pictures: {len(lengths)} of {spread}{middle}" + (f" ({', '.join(kinds)})" if kinds else "")
        if groups.hidden:
            yield f"hidden: {groups.hidden} pictures are decoded and not displayed (an edit list, or frames to lean on)"
    yield from _rate(np.asarray(video.timestamps))


def damage_lines(video: Video) -> Iterator[str]:
    """Decode every frame, small, and say which are damaged. Raises MediaError where the reader cannot go on."""
    damaged: list[int] = []
    for first in range(0, video.metadata.frames, _AT_ONCE):
        wanted = range(first, min(first + _AT_ONCE, video.metadata.frames))
        frames = video.frames_at(wanted, size=(32, 32), resize="swscale")
        damaged += frames.indices[frames.corrupt].tolist()
    if not damaged:
        yield f"damage: none found in {video.metadata.frames} decoded frames"
        return
    shown = ", ".join(map(str, damaged[:8])) + (", …" if len(damaged) > 8 else "")
    yield f"damage: {len(damaged)} of {video.metadata.frames} frames are damaged or missing: {shown}"


def _rate(times: np.ndarray) -> Iterator[str]:
    if len(times) < 3:
        return
    gaps = np.diff(times)
    # Matroska rounds to milliseconds: a spread of two of them is a constant rate.
    if gaps.max() - gaps.min() <= 0.0021:
        yield "rate: constant"
    else:
        yield f"rate: variable, frames lie {gaps.min():.4g} to {gaps.max():.4g} s apart"


def _streams(source: str, fetch: Fetch | None) -> Iterator[str]:
    """One line per stream."""
    from .media.packet_index import OpenStream
    from .video_sources import byte_source

    file = byte_source(source, fetch)
    try:
        opened = OpenStream(file)  # which allows single-file formats only, so that no playlist opens another file
        try:
            yield from map(_stream, opened.container.streams)
        finally:
            opened.close()
    finally:
        file.close()


def _stream(stream: Any) -> str:
    codec = stream.codec_context
    name = getattr(codec, "name", "unknown")  # data streams have no codec
    language = f", {stream.language}" if stream.language and stream.language != "und" else ""
    if stream.type == "video":
        return f"video {name}, {codec.width} x {codec.height}, {codec.pix_fmt or 'unknown format'}{language}"
    if stream.type == "audio":
        return f"audio {name}, {codec.sample_rate} Hz, {codec.layout.name}{language}"
    return f"{stream.type} {name}{language}"
