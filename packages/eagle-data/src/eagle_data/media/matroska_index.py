"""The packets of a Matroska or WebM file from the headers of its blocks: the payloads are skipped, not read.

Promises the packets, times and keyframes that FFmpeg's demuxer gives for tracks whose blocks hold one plain frame each. Lacing,
content encodings, cropping and other codecs are an UnreadableTable: the caller then scans the packets with FFmpeg.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .byte_source import ByteSource, MemorySource
from .frame_index import NO_TIME, StreamInfo
from .nal_units import picture_size
from .packet_table import DamagedTable, PacketTable, UnreadableTable

__all__ = ["looks_like_matroska", "read_matroska"]

_EBML, _SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_TOP = frozenset((0x114D9B74, _INFO, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF))
_BLOCK_GROUP, _BLOCK, _SIMPLE_BLOCK, _TIME = 0xA0, 0xA1, 0xA3, 0xE7
_DURATION, _REFERENCE = 0x9B, 0xFB
_MAX_HEADER = 1 << 26
_CHUNK = 64
_UNKNOWN = -1

_CODECS = {
    "V_MPEG4/ISO/AVC": "h264",
    "V_MPEGH/ISO/HEVC": "hevc",
    "V_VP8": "vp8",
    "V_VP9": "vp9",
    "V_AV1": "av1",
    "V_MPEG4/ISO/ASP": "mpeg4",
}


def looks_like_matroska(head: bytes) -> bool:
    """Whether the first bytes of a file are an EBML header."""
    return head[:4] == b"\x1a\x45\xdf\xa3"


class CutOff(UnreadableTable):
    """The file ends inside an element."""


@dataclass(frozen=True)
class _Track:
    number: int
    stream: StreamInfo
    default_ticks: int


class _Scanner:
    """Element headers of a source, read through a small window that follows the reading place."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self.size = source, source.size
        self._first, self._window = 0, b""

    def bytes_at(self, at: int, length: int) -> bytes:
        """Exactly `length` bytes, or UnreadableTable at the end of the file."""
        start = at - self._first
        if start < 0 or start + length > len(self._window):
            self._first, self._window = at, self._source.read_at(at, max(length, _CHUNK))
            start = 0
        data = self._window[start : start + length]
        if len(data) < length:
            raise CutOff("it ends inside an element")
        return data

    def element(self, at: int) -> tuple[int, int, int]:
        """Identifier, start of the body and length of the element at byte `at`; length -1 means unknown."""
        head = self.bytes_at(at, min(12, self.size - at))
        if not head or not head[0]:
            raise DamagedTable("an element has no identifier")
        width = 9 - head[0].bit_length()
        if width >= len(head):
            raise CutOff("it ends inside an element")
        if width > 4 or not head[width]:
            raise DamagedTable("an element has no length")
        length_width = 9 - head[width].bit_length()
        if width + length_width > len(head):
            raise CutOff("it ends inside an element")
        identifier = int.from_bytes(head[:width], "big")
        mask = (1 << 7 * length_width) - 1
        length = int.from_bytes(head[width : width + length_width], "big") & mask
        return identifier, at + width + length_width, _UNKNOWN if length == mask else length

    def children(self, body: int, length: int) -> dict[int, list[bytes]]:
        """Bodies of the elements in a small master element, by identifier."""
        if not 0 <= length <= _MAX_HEADER or body + length > self.size:
            raise UnreadableTable("a header element does not fit into the file")
        found: dict[int, list[bytes]] = {}
        at = body
        while at < body + length:
            identifier, start, size = self.element(at)
            if size < 0 or start + size > body + length:
                raise DamagedTable("a header element does not fit into its parent")
            found.setdefault(identifier, []).append(self.bytes_at(start, size))
            at = start + size
        return found


def _within(data: bytes) -> dict[int, list[bytes]]:
    return _Scanner(MemorySource(data, "<element>")).children(0, len(data))


def read_matroska(source: ByteSource) -> tuple[PacketTable, bool]:
    """The packets of the first video track that lie in the file whole, and whether the file ends before it should.

    Raises:
        UnreadableTable: damaged, or outside what this reader knows.
    """
    scanner = _Scanner(source)
    identifier, body, length = scanner.element(0)
    if identifier != _EBML or length < 0:
        raise UnreadableTable("there is no EBML header")
    identifier, body, length = scanner.element(body + length)
    if identifier != _SEGMENT:
        raise UnreadableTable("there is no segment")
    blocks = _Blocks()
    blocks.cut = length >= 0 and body + length > source.size
    stop = min(source.size, body + length) if length >= 0 else source.size
    scale, declared, track = 1_000_000, 0.0, None
    at = body
    while at < stop:
        try:
            identifier, start, size = scanner.element(at)
        except CutOff:
            blocks.cut = True
            break
        if identifier == _CLUSTER:
            if track is None:
                raise UnreadableTable("its blocks come before its tracks")
            try:
                at = blocks.read_cluster(scanner, start, stop if size < 0 else min(start + size, stop), size < 0, track)
            except CutOff:
                blocks.cut, at = True, stop
            continue
        if identifier not in _TOP or size < 0:
            raise DamagedTable("an element has no known place")
        if identifier == _INFO:
            info = scanner.children(start, size)
            scale = _number(info, 0x2AD7B1, 1_000_000)
            declared = _float(info, 0x4489) * scale / 1e9
        elif identifier == _TRACKS and track is None:
            track = _video_track(_tracks(scanner, start, size), scale)
        at = start + size
    if track is None or not scale:
        raise UnreadableTable("it has no tracks")
    seconds = max(blocks.latest, blocks.latest_video + track.default_ticks) * scale / 1e9
    # There is no frame count, but how long the longest track lasts; half a second allows for muxers' rounding.
    return blocks.table(track, Fraction(scale, 1_000_000_000)), blocks.cut or declared - seconds > 0.5


class _Blocks:
    """The blocks seen so far."""

    def __init__(self) -> None:
        self._pts, self._size, self._offset, self._duration = array("q"), array("q"), array("q"), array("q")
        self._keyframe = bytearray()
        self.latest = 0
        self.latest_video = 0
        self.cut = False

    def read_cluster(self, scanner: _Scanner, at: int, stop: int, endless: bool, track: _Track) -> int:
        """Note the track's blocks of one cluster and return where it ends."""
        time = 0
        while at < stop:
            identifier, start, size = scanner.element(at)
            if endless and identifier in _TOP and identifier not in (0xEC, 0xBF):
                return at
            if size < 0:
                raise DamagedTable("an element in a cluster has no length")
            if start + size > scanner.size:
                self.cut = True
                return scanner.size
            if identifier == _TIME:
                time = int.from_bytes(scanner.bytes_at(start, min(size, 8)), "big")
                if time >= 1 << 53:
                    raise UnreadableTable("a cluster lies beyond any time")
            elif identifier == _SIMPLE_BLOCK:
                self._block(scanner, start, size, time, track, None, 0)
            elif identifier == _BLOCK_GROUP:
                self._group(scanner, start, start + size, time, track)
            at = start + size
        return at

    def _group(self, scanner: _Scanner, at: int, stop: int, time: int, track: _Track) -> None:
        block, duration, leans = None, 0, False
        while at < stop:
            identifier, start, size = scanner.element(at)
            if size < 0 or start + size > stop:
                raise DamagedTable("a block does not fit into its group")
            if identifier == _BLOCK:
                block = (start, size)
            elif identifier == _DURATION:
                duration = int.from_bytes(scanner.bytes_at(start, min(size, 8)), "big")
            elif identifier == _REFERENCE:
                leans = True
            at = start + size
        if block is not None and duration < 1 << 53:
            self._block(scanner, *block, time, track, not leans, duration)

    def _block(
        self, scanner: _Scanner, start: int, size: int, time: int, track: _Track, keyframe: bool | None, duration: int
    ) -> None:
        head = scanner.bytes_at(start, min(size, 12))
        width = 9 - head[0].bit_length() if head else 9
        if width > 8 or width + 3 > len(head):
            raise DamagedTable("a block is shorter than its header")
        number = int.from_bytes(head[:width], "big") & (1 << 7 * width) - 1
        pts = time + struct.unpack_from(">h", head, width)[0]
        self.latest = max(self.latest, pts + duration)
        if number != track.number:
            return
        self.latest_video = max(self.latest_video, pts)
        flags = head[width + 2]
        if flags & 0x06:
            raise UnreadableTable("its blocks are laced")
        self._pts.append(pts)
        self._size.append(size - width - 3)
        self._offset.append(start + width + 3)
        self._duration.append(duration or track.default_ticks)
        self._keyframe.append(bool(flags & 0x80) if keyframe is None else keyframe)

    def table(self, track: _Track, time_base: Fraction) -> PacketTable:
        """What was seen, as one table."""
        count = len(self._pts)
        return PacketTable(
            pts=np.frombuffer(self._pts, np.int64) if count else np.zeros(0, np.int64),
            dts=np.full(count, NO_TIME),
            duration=np.array(self._duration, np.int64),
            keyframe=np.array(self._keyframe, np.uint8).astype(bool),
            size=np.array(self._size, np.int64),
            offset=np.array(self._offset, np.int64),
            discard=np.zeros(count, bool),
            time_base=time_base,
            stream=track.stream,
        )


def _tracks(scanner: _Scanner, body: int, length: int) -> list[dict[int, list[bytes]]]:
    return [_within(entry) for entry in scanner.children(body, length).get(0xAE, [])]


def _video_track(tracks: list[dict[int, list[bytes]]], scale: int) -> _Track:
    track = next((track for track in tracks if _number(track, 0x83, 0) == 1), None)
    if track is None:
        raise UnreadableTable("it has no video track")
    name = track.get(0x86, [b""])[0].rstrip(b"\0").decode("latin1")
    if name not in _CODECS or 0x6D80 in track:
        raise UnreadableTable(f"codec {name} is left to FFmpeg")
    # A delay, or a scale of its own, would move its times against FFmpeg's.
    if 0x23314F in track or _number(track, 0x56AA, 0) or 0xE0 not in track:
        raise UnreadableTable("its track is left to FFmpeg")
    video = _within(track[0xE0][0])
    # Cropping, a stereo mode, and a projection turn or change the picture.
    if any(_number(video, key, 0) for key in (0x54AA, 0x54BB, 0x54CC, 0x54DD, 0x53B8)) or 0x7670 in video:
        raise UnreadableTable("its picture is changed by the container")
    codec, extradata = _CODECS[name], track.get(0x63A2, [b""])[0]
    colour = (2, 0, 2, 2)
    if 0x55B0 in video:
        said = _within(video[0x55B0][0])
        colour = (_number(said, 0x55B1, 2), _number(said, 0x55B9, 0), _number(said, 0x55BB, 2), _number(said, 0x55BA, 2))
        colour = (colour[0], colour[1] if colour[1] < 3 else 0, colour[2], colour[3])
    default = _number(track, 0x23E383, 0)
    width, height = picture_size(codec, extradata) or (_number(video, 0xB0, 0), _number(video, 0xBA, 0))
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16) or not scale or max(colour) > 255 or not colour[0]:
        raise UnreadableTable("its track has no picture size")
    rate = Fraction(1_000_000_000, default).limit_denominator(1001) if 1_000_000 <= default < 10**12 else None
    stream = StreamInfo(codec, extradata, width, height, colour=colour, rate=rate, layout="matroska")
    return _Track(_number(track, 0xD7, 0), stream, default // scale)


def _number(elements: dict[int, list[bytes]], identifier: int, default: int) -> int:
    return int.from_bytes(elements[identifier][0], "big") if identifier in elements else default


def _float(elements: dict[int, list[bytes]], identifier: int) -> float:
    data = elements.get(identifier, [b""])[0]
    value = struct.unpack({4: ">f", 8: ">d"}[len(data)], data)[0] if len(data) in (4, 8) else 0.0
    return value if 0 <= value < 1e15 else 0.0
