"""The sample entry of an MP4 or QuickTime video track: which decoder its packets need, and with which headers.

Covers the codecs that are set up from the entry alone; everything else is an UnreadableTable, which leaves the file to FFmpeg.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .frame_index import StreamInfo
from .mp4_boxes import Box
from .nal_units import picture_size
from .packet_table import UnreadableTable

__all__ = ["shown_matrix", "stream_of"]

_CODECS = {
    b"avc1": ("h264", b"avcC"),
    b"avc3": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"av01": ("av1", b"av1C"),
    b"vp09": ("vp9", None),
    b"mp4v": ("mpeg4", b"esds"),
}
# An object type of the MPEG-4 registration authority that is MPEG-4 part 2 video.
_MPEG4_VISUAL = 0x20
# Boxes of a sample entry that change the picture in ways left to FFmpeg: clean aperture, spherical video, a second layer.
_LEFT_TO_FFMPEG = frozenset((b"clap", b"st3d", b"sv3d", b"dvcC", b"dvvC", b"lhvC", b"mvcC", b"sinf"))
_ENTRY_HEAD = 78


def stream_of(entry: Box, matrix: tuple[int, int, int, int], rate: Fraction | None) -> StreamInfo:
    """Decoder set-up of a visual sample entry (ISO 14496-12, 12.1.3). Raises UnreadableTable for what FFmpeg must read."""
    if entry.kind not in _CODECS:
        raise UnreadableTable(f"sample entry {entry.kind!r} is left to FFmpeg")
    codec, config = _CODECS[entry.kind]
    width, height = entry.number(24, 2), entry.number(26, 2)
    children = {child.kind: child for child in entry.children(_ENTRY_HEAD)}
    if _LEFT_TO_FFMPEG & set(children):
        raise UnreadableTable("its sample entry changes the picture")
    extradata = b""
    if config is not None:
        if config not in children:
            raise UnreadableTable(f"there is no {config.decode()}")
        extradata = _mpeg4_headers(children[config]) if config == b"esds" else children[config].rest()
    width, height = picture_size(codec, extradata) or (width, height)
    if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16):
        raise UnreadableTable("its pictures have no size")
    colour = (2, 0, 2, 2)
    if b"colr" in children and children[b"colr"].bytes_at(0, 4) in (b"nclx", b"nclc"):
        box = children[b"colr"]
        primaries, transfer, coefficients = (box.number(at, 2) for at in (4, 6, 8))
        full = 0
        if box.bytes_at(0, 4) == b"nclx":
            full = 2 if box.number(10, 1) >> 7 else 1
        # FFmpeg 8 keeps 0..17 or so of each; what it does not know it calls unspecified.
        known = [value if 0 < value <= 22 else 2 for value in (coefficients, primaries, transfer)]
        colour = (known[0] if coefficients else 2, full, known[1], known[2])
    return StreamInfo(codec, extradata, width, height, matrix, colour, rate, "mp4")


def shown_matrix(track_header: Box, movie_header: Box) -> tuple[int, int, int, int]:
    """The display matrix of a track, after the movie's own: ``(a, b, c, d)`` as signs and sizes."""
    of_track = _matrix(track_header, 52 if track_header.number(0, 1) == 1 else 40)
    of_movie = _matrix(movie_header, 48 if movie_header.number(0, 1) == 1 else 36)
    a, b, c, d = (of_track @ of_movie).flatten().tolist()
    if (a, b, c, d) == (0, 0, 0, 0):
        return 1, 0, 0, 1
    return _clip(a), _clip(b), _clip(c), _clip(d)


def _clip(value: float) -> int:
    return int(max(min(value * 65536, 2**31 - 1), -(2**31)))


def _matrix(box: Box, at: int) -> np.ndarray:
    """The rotating part of a matrix of 16.16 numbers ``[[a, b], [c, d]]``."""
    values = [box.signed(at + 4 * place, 4) / 65536 for place in (0, 1, 3, 4)]
    return np.array(values).reshape(2, 2)


def _mpeg4_headers(esds: Box) -> bytes:
    """The decoder's headers inside an elementary stream descriptor (ISO 14496-1, 7.2.6)."""
    data, at = esds.rest(4), 0
    kind = -1
    while at < len(data):
        tag, at, length = data[at], at + 1, 0
        for _ in range(4):
            if at >= len(data):
                break
            length, more, at = length << 7 | data[at] & 127, data[at] >> 7, at + 1
            if not more:
                break
        if tag == 3:
            flags = data[at + 2] if at + 2 < len(data) else 0
            if flags:
                raise UnreadableTable("its stream descriptor has options")
            at += 3
        elif tag == 4:
            kind = data[at] if at < len(data) else -1
            at += 13
        elif tag == 5 and kind == _MPEG4_VISUAL and length <= len(data) - at:
            return data[at : at + length]
        else:
            at += length
    raise UnreadableTable("its stream descriptor is left to FFmpeg")
