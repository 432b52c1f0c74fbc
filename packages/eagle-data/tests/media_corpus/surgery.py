"""What is done to finished files: the damage that real files suffer, and MP4 tables widened to 64 bits. Bytes in, bytes out.

Promises: the same bytes for the same input; damage that spares enough for a decoder to notice it. Not for: making the intact
files (`clips.py` says what they are, `make.py` makes them).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

__all__ = ["DAMAGED", "atom", "mutated", "tables_of", "widen"]

PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such video.</body></html>\n" * 40


def atom(data: bytes | bytearray, *path: bytes) -> tuple[int, int]:
    """Where the content of an MP4 atom lies, as (first byte, end), by its path from the top of the file; KeyError without it."""
    start, end = 0, len(data)
    for name in path:
        at = start
        while at + 8 <= end:
            size = int.from_bytes(data[at : at + 4], "big")
            head = 16 if size == 1 else 8
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size or end - at
            if data[at + 4 : at + 8] == name:
                start, end = at + head, at + size
                break
            at += max(size, 8)
        else:
            raise KeyError(f"{b'/'.join(path).decode()}: no atom {name.decode()}")
    return start, end


STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def widen(data: bytes) -> bytes:
    """An MP4 whose tables follow its media, with 64-bit chunk offsets (co64) and a 64-bit media atom."""
    media = data.index(b"mdat") - 4
    if data[media - 4 : media] not in (b"free", b"wide"):
        raise ValueError("no reserved atom before the media: 64-bit sizes need eight spare bytes")
    size = int.from_bytes(data[media : media + 4], "big") + 8
    result = data[: media - 8] + struct.pack(">I4sQ", 1, b"mdat", size) + data[media + 8 :]
    first, end = atom(result, *STBL, b"stco")
    count = int.from_bytes(result[first + 4 : first + 8], "big")
    offsets = struct.unpack(f">{count}I", result[first + 8 : end])
    table = struct.pack(f">I4sII{count}Q", 16 + 8 * count, b"co64", 0, count, *offsets)
    grown = 4 * count
    widened = bytearray(result[: first - 8] + table + result[end:])
    for depth in range(1, len(STBL) + 1):
        start, _ = atom(result, *STBL[:depth])
        at = start - 8
        widened[at : at + 4] = (int.from_bytes(widened[at : at + 4], "big") + grown).to_bytes(4, "big")
    return bytes(widened)


def cut(share: float) -> Callable[[bytes], bytes]:
    """Only the first part of the file."""
    return lambda data: data[: int(len(data) * share)]


def flipped(first: float, last: float, count: int, seed: int = 0) -> Callable[[bytes], bytes]:
    """Bytes turned over at random places between two shares of the file."""

    def hurt(data: bytes) -> bytes:
        changed, chance = bytearray(data), random.Random(seed)
        for _ in range(count):
            changed[chance.randrange(int(len(data) * first), int(len(data) * last))] ^= 0xFF
        return bytes(changed)

    return hurt


def zeroed(first: float, last: float) -> Callable[[bytes], bytes]:
    """Zeros between two shares of the file, as a download with a hole has."""

    def hurt(data: bytes) -> bytes:
        start, end = int(len(data) * first), int(len(data) * last)
        return data[:start] + bytes(end - start) + data[end:]

    return hurt


def without_tables(data: bytes) -> bytes:
    """An MP4 whose recorder died before it wrote the tables."""
    return data[: data.index(b"moov") - 4]


def lying_keyframes(data: bytes) -> bytes:
    """Pictures in the middle of a GOP called keyframes."""
    changed = bytearray(data)
    first, end = atom(data, *STBL, b"stss")
    for number, at in enumerate(range(first + 8, end, 4)):
        changed[at : at + 4] = (1 + 17 * number).to_bytes(4, "big")
    return bytes(changed)


def lying_count(data: bytes) -> bytes:
    """A table of sizes that says it has two thousand million entries."""
    changed = bytearray(data)
    first, _ = atom(data, *STBL, b"stsz")
    changed[first + 8 : first + 12] = (2_000_000_000).to_bytes(4, "big")
    return bytes(changed)


def lying_sizes(data: bytes) -> bytes:
    """Twenty of the sizes in the middle doubled."""
    changed = bytearray(data)
    first, _ = atom(data, *STBL, b"stsz")
    for at in range(first + 12 + 4 * 40, first + 12 + 4 * 60, 4):
        changed[at : at + 4] = (2 * int.from_bytes(data[at : at + 4], "big")).to_bytes(4, "big")
    return bytes(changed)


def lying_offsets(data: bytes) -> bytes:
    """Every chunk said to lie beyond the end of the file."""
    changed = bytearray(data)
    first, end = atom(data, *STBL, b"stco")
    for at in range(first + 8, end, 4):
        changed[at : at + 4] = (0xFFFF0000 + at).to_bytes(4, "big")
    return bytes(changed)


def tables_of(data: bytes) -> list[int]:
    """Places a reader goes by: all of an MP4 but its media atoms, or the first 600 and the last 300 bytes of another file."""
    if data[4:8] != b"ftyp":
        return [*range(600), *range(len(data) - 300, len(data))]
    places, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if data[at + 4 : at + 8] not in (b"mdat", b"free"):
            places += range(at, at + size)
        at += size
    return places


def mutated(data: bytes, places: Sequence[int], seed: int) -> bytes:
    """One to eight of the `places` given a random byte, or a random or extreme 32-bit number from there on."""
    changed, chance = bytearray(data), random.Random(seed)
    for _ in range(chance.randint(1, 8)):
        at = chance.choice(places)
        if chance.random() < 0.5:
            changed[at] = chance.randrange(256)
        else:
            number = chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)))
            changed[at : at + 4] = number.to_bytes(4, "big")
    return bytes(changed[: len(data)])


DAMAGED: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "empty.mp4": (None, lambda _: b""),
    "random.mp4": (None, lambda _: random.Random(0).randbytes(20_000)),
    "page.mp4": (None, lambda _: PAGE),
    "no_tables.mp4": ("h264.mp4", without_tables),
    "cut.mp4": ("h264_faststart.mp4", cut(0.6)),
    "cut.mkv": ("h264.mkv", cut(0.6)),
    "cut.webm": ("vp9.webm", cut(0.6)),
    "cut.ts": ("h264.ts", cut(0.6)),
    "cut.avi": ("mpeg4.avi", cut(0.6)),
    "cut_fragments.mp4": ("h264_fragments.mp4", cut(0.6)),
    "flipped.mp4": ("h264.mp4", flipped(0.3, 0.7, 25)),
    "flipped.mkv": ("h264.mkv", flipped(0.3, 0.7, 25)),
    "flipped.ts": ("h264.ts", flipped(0.3, 0.7, 25)),
    "flipped_hevc.mp4": ("hevc.mp4", flipped(0.3, 0.7, 25)),
    "flipped_open_gop.mp4": ("h264_open_gop.mp4", flipped(0.3, 0.7, 25)),
    "zeroed.mp4": ("h264.mp4", zeroed(0.45, 0.55)),
    "zeroed.mkv": ("h264.mkv", zeroed(0.45, 0.55)),
    "zeroed.webm": ("vp9.webm", zeroed(0.45, 0.55)),
    "zeroed_av1.mp4": ("av1.mp4", zeroed(0.45, 0.55)),
    "lying_keyframes.mp4": ("h264.mp4", lying_keyframes),
    "lying_count.mp4": ("h264.mp4", lying_count),
    "lying_sizes.mp4": ("h264.mp4", lying_sizes),
    "lying_offsets.mp4": ("h264.mp4", lying_offsets),
}
"""Damaged files: the intact one each is made of, if any, and what is done to it."""
