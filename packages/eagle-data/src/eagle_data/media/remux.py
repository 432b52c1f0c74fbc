"""The packets of a stream, from which a decoder is fed: read from their places in the file, or copied out of it without loss.

A copy is made where a container does not give whole packets at known places (MPEG-TS, AVI, streams with headers taken apart): the
packets are demuxed once and kept unchanged, in memory up to a limit and in an unnamed temporary file beyond. Decodes nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Protocol

from .byte_source import ByteSource
from .frame_index import FrameIndex
from .packet_table import PacketTable

if TYPE_CHECKING:
    from av.packet import Packet

__all__ = ["CopiedPackets", "FilePackets", "Packets"]

_IN_MEMORY = 256 << 20
_RUN, _GAP = 1 << 20, 1 << 15
# Side data without which a packet does not decode; the rest is about the container.
_NEEDED = ("palette", "new_extradata", "param_change")


class Packets(Protocol):
    """Packets by their number in decode order.

    Attributes:
        damaged: numbers of packets that the container itself marks as damaged.
    """

    damaged: frozenset[int]

    def data(self, number: int) -> bytes:
        """The bytes of a packet; empty when the file ends before the packet does."""
        ...

    def run(self, start: int, stop: int) -> Iterator[bytes]:
        """As `data`, for the packets from `start` up to, not including, `stop`."""
        ...

    def packet(self, number: int, data: bytes) -> Packet:
        """A packet of those bytes whose pts is its number, by which its frame is known again."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class FilePackets:
    """Packets that lie in the file as one stretch each."""

    damaged: frozenset[int] = frozenset()

    def __init__(self, source: ByteSource, index: FrameIndex | PacketTable) -> None:
        self._source, self._offset, self._size = source, index.offset, index.size

    def data(self, number: int) -> bytes:
        """See `Packets`."""
        size = int(self._size[number])
        data = self._source.read_at(int(self._offset[number]), size)
        return data if len(data) == size else b""

    def run(self, start: int, stop: int) -> Iterator[bytes]:
        """See `Packets`. Packets that lie one behind the other are read together: one system call costs as much as 50 kB."""
        places, sizes = self._offset[start:stop].tolist(), self._size[start:stop].tolist()
        at, count = 0, len(places)
        while at < count:
            first, end, after = places[at], places[at] + sizes[at], at + 1
            while after < count and 0 <= places[after] - end <= _GAP and places[after] + sizes[after] - first <= _RUN:
                end, after = places[after] + sizes[after], after + 1
            data = self._source.read_at(first, end - first)
            for place, size in zip(places[at:after], sizes[at:after], strict=True):
                packet = data[place - first : place - first + size]
                yield packet if len(packet) == size else b""
            at = after

    def packet(self, number: int, data: bytes) -> Packet:
        """See `Packets`."""
        return _packet(number, data)

    def close(self) -> None:
        """The source is closed by its owner."""


class CopiedPackets:
    """Packets copied out of a container."""

    def __init__(self) -> None:
        self.damaged: frozenset[int] = frozenset()
        self._memory: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        self._whole: dict[int, Packet] = {}
        self._total = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def add(self, packet: Packet) -> None:
        """Keep a packet as the next one."""
        data = bytes(packet)
        number = len(self._places)
        if packet.is_corrupt:
            self.damaged |= {number}
        if any(packet.has_sidedata(kind) for kind in _NEEDED):
            packet.pts = number
            self._whole[number] = packet
        self._places.append((self._total, len(data)))
        self._total += len(data)
        if self._file is None and self._total > _IN_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
            for kept in self._memory:
                self._file.write(kept)
            self._memory = []
        if self._file is None:
            self._memory.append(data)
        else:
            self._file.write(data)

    def finish(self) -> None:
        """Call once after the last `add`."""
        if self._file is not None:
            self._file.flush()

    def data(self, number: int) -> bytes:
        """See `Packets`."""
        if self._file is None:
            return self._memory[number]
        place, size = self._places[number]
        return os.pread(self._file.fileno(), size, place)

    def run(self, start: int, stop: int) -> Iterator[bytes]:
        """See `Packets`."""
        return (self.data(number) for number in range(start, stop))

    def packet(self, number: int, data: bytes) -> Packet:
        """See `Packets`."""
        return self._whole.get(number) or _packet(number, data)

    def close(self) -> None:
        """Forget the packets."""
        self._memory, self._whole = [], {}
        if self._file is not None:
            self._file.close()
            self._file = None


def _packet(number: int, data: bytes) -> Packet:
    from av.packet import Packet

    # Not Packet(data): memory that FFmpeg did not allocate lacks the zeros behind it that decoders read (MPEG-4 decodes wrongly).
    packet = Packet(len(data))
    packet.update(data)
    packet.pts = packet.dts = number
    return packet
