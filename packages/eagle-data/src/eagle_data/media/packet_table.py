"""What a container says of a stream's packets, before it is known which of them are displayed.

`as_index` makes the frame index where packets and displayed frames are known to agree; where they need not, only decoding
everything tells, and `as_index_of` takes what that found. Pure arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .frame_index import NO_TIME, FrameIndex, StreamInfo, times_of

__all__ = ["DamagedTable", "PacketTable", "UnreadableTable"]

# Codecs whose every packet is one displayed frame. VP8 hides reference frames, MPEG-4 packs B-frames, MPEG-2 may store fields.
_FRAME_PER_PACKET = frozenset(["h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "png", "rawvideo"])


class UnreadableTable(ValueError):
    """A container table that contradicts itself, or a feature that this package leaves to FFmpeg."""


class DamagedTable(UnreadableTable):
    """A structure that no writer makes: bytes of the file were lost."""


@dataclass(frozen=True, eq=False)
class PacketTable:
    """One entry per packet, in decode order; times are ticks of `time_base`.

    Attributes:
        pts, dts, duration: int64 ``[packets]``; `NO_TIME` for an unknown pts or dts, 0 for an unknown duration.
        keyframe: bool ``[packets]``.
        size, offset: int64 ``[packets]``; offset -1 where a packet is not one stretch of the file.
        discard: bool ``[packets]``, decoded but not displayed (an edit list starts behind them).
        time_base: seconds per tick.
        stream: see `StreamInfo`.
        trusted_times: whether the container stores presentation times (AVI and raw streams do not).
    """

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    keyframe: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    discard: np.ndarray
    time_base: Fraction
    stream: StreamInfo
    trusted_times: bool = True

    def __len__(self) -> int:
        return len(self.size)

    def first(self, count: int) -> PacketTable:
        """The first `count` packets."""
        columns = ("pts", "dts", "duration", "keyframe", "size", "offset", "discard")
        return replace(self, **{name: getattr(self, name)[:count] for name in columns})

    def has_gap(self) -> bool:
        """Whether the times leave a gap of more than one usual distance of pictures."""
        steps = np.diff(np.sort(self.pts[self.pts != NO_TIME]))
        return bool(len(steps) and steps.max() > 1.5 * np.median(steps))

    def as_index(self) -> FrameIndex | None:
        """The index, or None where packets and displayed frames need not agree."""
        if self.stream.codec not in _FRAME_PER_PACKET or not self.trusted_times or not len(self):
            return None
        if (self.pts == NO_TIME).any():
            return None
        shown = np.flatnonzero(~self.discard)
        order = np.argsort(self.pts[shown], kind="stable")
        display = shown[order]
        pts = self.pts[display]
        keys = self.pts[self.keyframe]
        # Two pictures at one time, or pictures before the first keyframe in storage or on screen: only decoding tells.
        if not len(display) or not self.keyframe[0] or (np.diff(pts) <= 0).any():
            return None
        if pts[0] < keys[0] or (np.diff(keys) <= 0).any():
            return None
        return self._index(display, int(pts[-1] + self.duration[display[-1]]))

    def as_index_of(self, display: np.ndarray, *, cut: bool = False) -> FrameIndex:
        """The index when decoding everything displayed the packets ``display`` (int64 ``[frames]``) in that order.

        With `cut` the file ends before the video does: frames behind which a missing one may belong are left out where only their
        number gives them a time.
        """
        display = display[~self.discard[display]]
        if cut and not self.trusted_times:
            early = int((display - np.arange(len(display))).max())
            display = display[: max(len(display) - max(early, 0), 1)]
        pts = self.pts[display]
        if (pts != NO_TIME).all() and (np.diff(pts) > 0).all():
            return self._index(display, int(pts[-1] + self.duration[display[-1]]))
        # What is left are FFmpeg's guesses (AVI, raw streams), wrong once B-frames come in; a steady rate is the better one.
        return self._build(display, np.arange(len(display) + 1) / float(self.stream.rate or 25), 0)

    def _index(self, display: np.ndarray, end: int) -> FrameIndex:
        pts = self.pts[display]
        if end <= int(pts[-1]):
            rate = self.stream.rate or Fraction(1)
            end = int(pts[-1]) + max(int(1 / (rate * self.time_base)), 1)
        return self._build(display, times_of(pts, end, self.time_base), end)

    def _build(self, display: np.ndarray, times: np.ndarray, end: int) -> FrameIndex:
        return FrameIndex(
            pts=self.pts,
            dts=self.dts,
            keyframe=self.keyframe,
            size=self.size,
            offset=self.offset,
            display=display,
            times=times,
            time_base=self.time_base,
            end=end,
            stream=self.stream,
        )
