"""How long a media file says it is, from the few bytes of its outermost structure (MP4/MOV, Matroska/WebM, RIFF).

Lets a reader refuse a file that was cut off, which decoders mostly play to the cut without a word. Parses nothing else: tables,
frames and damage inside the file are the decoder's business.
"""

from __future__ import annotations

import io

from .mp4_boxes import TOP_LEVEL

__all__ = ["declared_size"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def declared_size(file: io.RawIOBase) -> int | None:
    """Bytes that `file` claims to have, or None where its format does not say (or is none of the three)."""
    file.seek(0)
    head = file.read(12) or b""
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return None if size in (0, 0xFFFFFFFF) else size + 8
    if head[:4] == _EBML:
        return _matroska(file)
    if head[4:8] in TOP_LEVEL:
        return _mp4(file)
    return None


def _mp4(file: io.RawIOBase) -> int | None:
    at = 0
    while True:
        file.seek(at)
        header = file.read(16) or b""
        if not header:
            return at
        if header[4:8] not in TOP_LEVEL:
            return None
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        # Size 0 means "to the end of the file"; anything below a header's length is padding or damage.
        if size < 8:
            return None
        at += size


def _matroska(file: io.RawIOBase) -> int | None:
    file.seek(4)
    size = _vint(file)
    if size is None:
        return None
    file.seek(size, 1)
    if file.read(4) != _SEGMENT:
        return None
    size = _vint(file)
    return None if size is None else file.tell() + size


def _vint(file: io.RawIOBase) -> int | None:
    """An EBML length; None for "unknown" (live recordings) and for damage."""
    first = file.read(1) or b""
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1) or b""
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    unknown = (1 << 7 * length) - 1
    return None if len(rest) < length - 1 or value == unknown else value
