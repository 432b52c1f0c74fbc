"""The box structure of MP4 and QuickTime files (ISO 14496-12): walking boxes, with every length checked.

Understands sizes and names only; what boxes mean is `mp4_index`, `mp4_fragments` and `mp4_entry`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .byte_source import ByteSource
from .packet_table import UnreadableTable

__all__ = ["TOP_LEVEL", "Box", "TopBox", "looks_like_mp4", "top_boxes"]

# ISO 14496-12, top level.
TOP_LEVEL = frozenset(b"ftyp styp moov moof mdat mfra sidx ssix free skip wide uuid meta udta pnot emsg prft pdin".split())
_TOP_BOXES_READ = 1_000_000


@dataclass(frozen=True)
class Box:
    """A box within data in memory; ``data[start:stop]`` is its body."""

    kind: bytes
    data: bytes
    start: int
    stop: int

    def children(self, skip: int = 0) -> Iterator[Box]:
        """The boxes inside, after `skip` bytes of the body. Raises UnreadableTable for one that does not fit."""
        at = self.start + skip
        # Some writers end a list with four zero bytes.
        while at + 8 <= self.stop:
            size, kind, head = int.from_bytes(self.data[at : at + 4], "big"), self.data[at + 4 : at + 8], 8
            if size == 1:
                size, head = int.from_bytes(self.data[at + 8 : at + 16], "big"), 16
            elif size == 0:
                size = self.stop - at
            if size < head or at + size > self.stop:
                raise UnreadableTable(f"box {kind!r} does not fit into {self.kind!r}")
            yield Box(kind, self.data, at + head, at + size)
            at += size

    def child(self, *path: bytes) -> Box | None:
        """The first box of that path below this one."""
        box: Box | None = self
        for kind in path:
            box = next((child for child in box.children() if child.kind == kind), None)
            if box is None:
                return None
        return box

    def need(self, *path: bytes) -> Box:
        """As `child`, but a missing one is an UnreadableTable."""
        box = self.child(*path)
        if box is None:
            raise UnreadableTable(f"there is no {'/'.join(kind.decode('latin1') for kind in path)}")
        return box

    def number(self, at: int, length: int) -> int:
        """An unsigned big-endian number at byte `at` of the body."""
        if self.start + at + length > self.stop:
            raise UnreadableTable(f"box {self.kind!r} is too short")
        return int.from_bytes(self.data[self.start + at : self.start + at + length], "big")

    def signed(self, at: int, length: int) -> int:
        """A signed big-endian number at byte `at` of the body."""
        value = self.number(at, length)
        return value - (1 << 8 * length) if value >> (8 * length - 1) else value

    def bytes_at(self, at: int, length: int) -> bytes:
        """`length` bytes from byte `at` of the body."""
        if length < 0 or self.start + at + length > self.stop:
            raise UnreadableTable(f"box {self.kind!r} is too short")
        return self.data[self.start + at : self.start + at + length]

    def rest(self, at: int = 0) -> bytes:
        """The body from byte `at` on."""
        return self.data[self.start + at : self.stop]

    def table(self, at: int, count: int, columns: int, kind: str) -> np.ndarray:
        """``[count, columns]`` of big-endian `kind` from byte `at` of the body; refused when it does not fit."""
        width = np.dtype(kind).itemsize
        if count < 0 or self.start + at + count * columns * width > self.stop:
            raise UnreadableTable(f"box {self.kind!r} claims {count} entries and is too short for them")
        return np.frombuffer(self.data, kind, count * columns, self.start + at).reshape(count, columns)

    def entries(self, columns: int, kind: str = ">u4") -> np.ndarray:
        """The table of a full box that starts with a count: ``[count, columns]``."""
        return self.table(8, self.number(4, 4), columns, kind)


@dataclass(frozen=True)
class TopBox:
    """A box of the file: its name, where it starts, where its body starts, and where it says that it ends."""

    kind: bytes
    start: int
    body: int
    stop: int

    def load(self, source: ByteSource) -> Box:
        """Read the body into memory. Raises UnreadableTable when the file ends before the box does."""
        if self.stop > source.size:
            raise UnreadableTable(f"the file ends inside {self.kind!r}")
        data = source.read_at(self.body, self.stop - self.body)
        return Box(self.kind, data, 0, len(data))


def looks_like_mp4(head: bytes) -> bool:
    """Whether the first 12 bytes of a file name a box that such files start with."""
    return head[4:8] in TOP_LEVEL


def top_boxes(source: ByteSource) -> Iterator[TopBox]:
    """The outermost boxes. Ends at padding or damage; the last box may claim more than the file has."""
    at = 0
    for _ in range(_TOP_BOXES_READ):
        header = source.read_at(at, 16)
        if len(header) < 8 or header[4:8] not in TOP_LEVEL:
            return
        size, head = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(header[8:16], "big"), 16
        elif size == 0:
            size = source.size - at
        if size < head:
            return
        yield TopBox(header[4:8], at, at + head, at + size)
        at += size
