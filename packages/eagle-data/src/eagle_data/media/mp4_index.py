"""The packets of an MP4 or QuickTime file from its own tables: nothing of the media is read, and FFmpeg is not asked.

Promises the packets, times and keyframes that FFmpeg's demuxer gives: edit lists, composition offsets of both signs, 64-bit
boxes, compact sizes, fragments (`mp4_fragments`). Every length is checked before anything is allocated. What it does not know
(several edits, several sample descriptions, other codecs) is an UnreadableTable: the caller then scans the packets with FFmpeg.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .byte_source import ByteSource
from .mp4_boxes import Box, TopBox, top_boxes
from .mp4_entry import shown_matrix, stream_of
from .mp4_fragments import FragmentTrack, read_fragment
from .packet_table import PacketTable, UnreadableTable

__all__ = ["NoVideoTrack", "read_mp4"]

_MAX_TABLE = 1 << 30


class NoVideoTrack(ValueError):
    """A well-formed file without a picture track."""


def read_mp4(source: ByteSource) -> tuple[PacketTable, int]:
    """The packets of the first video track, and the bytes that the file's outermost boxes claim.

    Raises:
        UnreadableTable: damaged, or outside what this reader knows.
        NoVideoTrack: no picture track.
    """
    movie: Box | None = None
    fragments: list[TopBox] = []
    claimed = 0
    for box in top_boxes(source):
        claimed = box.stop
        if box.kind == b"moov" and movie is None:
            if box.stop - box.body > _MAX_TABLE:
                raise UnreadableTable("its tables are too large")
            movie = box.load(source)
        elif box.kind == b"moof" and box.stop <= source.size:
            fragments.append(box)
    if movie is None:
        raise UnreadableTable("there is no moov box")
    track = _video_track(movie)
    return _Track(movie, track, source.size).read(source, fragments), claimed


def _video_track(movie: Box) -> Box:
    videos, chapters = [], False
    for track in movie.children():
        if track.kind != b"trak":
            continue
        chapters = chapters or track.child(b"tref", b"chap") is not None
        if track.need(b"mdia", b"hdlr").bytes_at(8, 4) == b"vide":
            videos.append(track)
    if not videos:
        raise NoVideoTrack("has no video stream")
    if len(videos) > 1 and chapters:
        raise UnreadableTable("one of its tracks holds chapter pictures")
    return videos[0]


class _Track:
    """One video track while it is read."""

    def __init__(self, movie: Box, track: Box, file_size: int) -> None:
        self._movie, self._track, self._file_size = movie, track, file_size
        header = track.need(b"mdia", b"mdhd")
        self._scale = header.number(20 if header.number(0, 1) == 1 else 12, 4)
        movie_header = movie.need(b"mvhd")
        self._movie_scale = movie_header.number(20 if movie_header.number(0, 1) == 1 else 12, 4)
        if not self._scale or not self._movie_scale:
            raise UnreadableTable("its time scale is zero")
        self._table = track.need(b"mdia", b"minf", b"stbl")

    def read(self, source: ByteSource, fragments: list[TopBox]) -> PacketTable:
        """All packets: those of the movie box, then those of the fragments."""
        for reference in self._track.need(b"mdia", b"minf", b"dinf", b"dref").children(8):
            if not reference.number(0, 4) & 1:
                raise UnreadableTable("its media lie in another file")
        size = self._sizes()
        count = len(size)
        duration = self._durations(count)
        dts = np.cumsum(duration) - duration
        pts = dts + self._composition(count)
        discard = np.zeros(count, bool)
        columns = [pts, dts, duration, self._keyframes(count), size, self._offsets(size)]
        edit = self._edit()
        if fragments:
            if count and edit is not None:
                raise UnreadableTable("it has an edit list, a sample table and fragments")
            track = FragmentTrack(self._track_id(), int(duration.sum()), *self._fragment_defaults())
            parts = [columns]
            for fragment in fragments:
                part = read_fragment(fragment.load(source), fragment.start, track, source.size)
                if part is not None:
                    parts.append(part)
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
            pts, duration = columns[0], columns[2]
            discard = np.zeros(len(pts), bool)
        elif edit is not None:
            start, length = edit
            discard = (pts < start) | (pts >= start + length)
        total = int(duration.sum())
        rate = Fraction(len(pts) * self._scale, total) if total else None
        matrix = shown_matrix(self._track.need(b"tkhd"), self._movie.need(b"mvhd"))
        return PacketTable(
            *columns, discard=discard, time_base=Fraction(1, self._scale), stream=stream_of(self._entry(), matrix, rate)
        )

    def _entry(self) -> Box:
        entries = list(self._table.need(b"stsd").children(8))
        if len(entries) != 1:
            raise UnreadableTable(f"it has {len(entries)} sample descriptions")
        return entries[0]

    def _sizes(self) -> np.ndarray:
        box = self._table.child(b"stsz")
        if box is not None:
            constant, count = box.number(4, 4), box.number(8, 4)
            if not constant:
                return box.table(12, count, 1, ">u4")[:, 0].astype(np.int64)
            if constant * count > self._file_size:
                raise UnreadableTable("its sample table is larger than the file")
            return np.full(count, constant, np.int64)
        box = self._table.need(b"stz2")
        bits, count = box.number(7, 1), box.number(8, 4)
        if bits == 4:
            pairs = box.table(12, (count + 1) // 2, 1, "u1")[:, 0]
            return np.stack([pairs >> 4, pairs & 15], 1).reshape(-1)[:count].astype(np.int64)
        if bits not in (8, 16):
            raise UnreadableTable(f"sample sizes of {bits} bits")
        return box.table(12, count, 1, f">u{bits // 8}")[:, 0].astype(np.int64)

    def _durations(self, count: int) -> np.ndarray:
        runs = self._table.need(b"stts").entries(2)
        if int(runs[:, 0].sum(dtype=np.int64)) != count or (runs[:, 1] >> 31).any():
            raise UnreadableTable("its time table does not fit its sample table")
        return np.repeat(runs[:, 1].astype(np.int64), runs[:, 0])

    def _composition(self, count: int) -> np.ndarray:
        box = self._table.child(b"ctts")
        if box is None:
            return np.zeros(count, np.int64)
        # Writers put negative offsets into version 0 too; FFmpeg reads both as signed.
        runs = box.entries(2)
        if int(runs[:, 0].sum(dtype=np.int64)) != count:
            raise UnreadableTable("its composition table does not fit its sample table")
        return np.repeat(runs[:, 1].astype(np.uint32).view(np.int32).astype(np.int64), runs[:, 0])

    def _keyframes(self, count: int) -> np.ndarray:
        box = self._table.child(b"stss")
        if self._table.child(b"stps") is not None:
            raise UnreadableTable("it has partial sync samples")
        if box is None:
            return np.ones(count, bool)
        numbers = box.entries(1)[:, 0].astype(np.int64)
        if count and (not len(numbers) or numbers.min() < 1 or numbers.max() > count):
            raise UnreadableTable("its keyframe table does not fit its sample table")
        keyframe = np.zeros(count, bool)
        keyframe[numbers - 1] = True
        return keyframe

    def _offsets(self, size: np.ndarray) -> np.ndarray:
        box = self._table.child(b"stco")
        chunks = box.entries(1) if box is not None else self._table.need(b"co64").entries(1, ">u8")
        if not len(size):
            return np.zeros(0, np.int64)
        if (chunks > 1 << 62).any():
            raise UnreadableTable("its chunks lie beyond any file")
        start = chunks[:, 0].astype(np.int64)
        runs = self._table.need(b"stsc").entries(3).astype(np.int64)
        first = runs[:, 0]
        if not len(runs) or first[0] != 1 or (np.diff(first) <= 0).any() or first[-1] > len(start):
            raise UnreadableTable("its chunk table contradicts itself")
        if (runs[:, 2] != 1).any():
            raise UnreadableTable("it changes its sample description")
        lengths = np.diff(np.append(first, len(start) + 1))
        if int((lengths * runs[:, 1]).sum()) != len(size):
            raise UnreadableTable("its chunk table does not fit its sample table")
        samples = np.repeat(runs[:, 1], lengths)
        before = np.cumsum(size) - size
        heads = np.minimum(np.cumsum(samples) - samples, len(size) - 1)
        return np.repeat(start - before[heads], samples) + before

    def _edit(self) -> tuple[int, int] | None:
        """First tick and length of the part that is shown, or None when everything is."""
        box = self._track.child(b"edts", b"elst")
        if box is None:
            return None
        wide = box.number(0, 1) == 1
        real = []
        for number in range(min(box.number(4, 4), 1024)):
            at = 8 + number * (20 if wide else 12)
            length, start = (box.number(at, 8), box.signed(at + 8, 8)) if wide else (box.number(at, 4), box.signed(at + 4, 4))
            if box.number(at + (16 if wide else 8), 4) != 0x10000:
                raise UnreadableTable("it plays at another speed")
            # An empty edit delays the track; time here counts from the first displayed frame.
            if start != -1:
                real.append((start, length))
        if not real:
            return None
        if len(real) > 1 or real[0][0] < 0:
            raise UnreadableTable("it has several edits")
        start, length = real[0]
        return start, _rescale(length, self._scale, self._movie_scale)

    def _track_id(self) -> int:
        header = self._track.need(b"tkhd")
        return header.number(20 if header.number(0, 1) == 1 else 12, 4)

    def _fragment_defaults(self) -> tuple[int, int, int]:
        """Duration, size and flags of samples for which a fragment gives none."""
        extends = self._movie.child(b"mvex")
        for box in extends.children() if extends is not None else ():
            if box.kind == b"trex" and box.number(4, 4) == self._track_id():
                return box.number(12, 4), box.number(16, 4), box.number(20, 4)
        return 0, 0, 0


def _rescale(value: int, scale: int, movie_scale: int) -> int:
    """`value` in the movie's ticks as the track's, rounded to the nearest, halves away from zero, as FFmpeg does."""
    return (2 * value * scale + movie_scale) // (2 * movie_scale)
