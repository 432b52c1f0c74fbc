"""One video file, opened: its index from the best source there is, and its frames decoded into the caller's array.

Chooses between container tables, a packet scan and counting by decoding; refuses a file that was cut off unless asked for what is
there; keeps a bounded number of decoders. Implements `video_frames.FrameReader`; decides nothing about which frames are wanted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MediaError
from .byte_source import ByteSource
from .decode import Decoder, Outcome, OverBudget, OwnDecoder, Stream, decode_all, run_groups
from .decode_plan import plan_groups
from .frame_index import FrameIndex, StreamInfo
from .matroska_index import looks_like_matroska, read_matroska
from .mp4_boxes import looks_like_mp4
from .mp4_index import NoVideoTrack, read_mp4
from .packet_index import OpenStream, cut_off, scan_packets
from .packet_table import DamagedTable, PacketTable, UnreadableTable
from .picture import Matrix, PictureMaker, Resize, display_matrix, is_turned
from .remux import CopiedPackets, FilePackets, Packets

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["ContainerReader", "Filled"]

_DAMAGED = "Copy the file again, or re-encode it with ffmpeg"


@dataclass(frozen=True)
class Filled:
    """What became of the frames asked for.

    Attributes:
        damaged: numbers of frames that are damaged or missing; missing ones were left as they were.
        decoded: pictures decoded.
    """

    damaged: frozenset[int]
    decoded: int


class ContainerReader:
    """One open file. Not shared between threads; it starts its own while it decodes, `threads` at most."""

    def __init__(
        self,
        source: ByteSource,
        *,
        index: FrameIndex | None = None,
        threads: int = 2,
        truncated: bool = False,
        budget: float | None = None,
    ) -> None:
        if threads < 1:
            raise MediaError(source.name, f"threads={threads}", "Give at least 1")
        self.name = source.name
        self._source, self._threads, self._truncated, self._budget = source, threads, truncated, budget
        self._packets: Packets | None = None
        self._workers: list[tuple[Decoder, PictureMaker]] = []
        self._first: OpenStream | None = None
        self._matrix: Matrix | None = None
        self._closed = self._torn = False
        self._fresh = index is None
        try:
            with _Budget(self) as deadline:
                self.index = self._make_index(deadline) if index is None else index
        except BaseException:
            self.close()
            raise
        self.times = self.index.times
        stream = self.index.stream
        rate = stream.rate
        self.rate: float | None = float(rate) if rate else None
        self.width, self.height = (stream.height, stream.width) if stream.turned else (stream.width, stream.height)
        a, b = stream.matrix[:2]
        self.rotation = round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    def close(self) -> None:
        """Release the file, its packets and its decoders."""
        self._closed = True
        for decoder, _ in self._workers:
            decoder.close()
        self._workers = []
        if self._first is not None:
            self._first.close()
            self._first = None
        if self._packets is not None:
            self._packets.close()
            self._packets = None
        self._source.close()

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted frames in order; see `video_frames.FrameReader`. Raises MediaError for a damaged one."""
        width, height = size or (self.width, self.height)
        for number in wanted:
            out = np.empty((1, height, width, 3), np.uint8)
            if self.fill({number: [0]}, out).damaged:
                raise MediaError(self.name, f"frame {number} of the whole file is damaged", _DAMAGED)
            yield number, out[0]

    def fill(self, places: dict[int, list[int]], out: np.ndarray, *, rotate: bool = True, resize: Resize = "pillow") -> Filled:
        """Decode frames straight into an array.

        Args:
            places: for each frame number the places of `out` that get it.
            out: uint8 ``[n, height, width, 3]``; frames are scaled to fill it.
            rotate: apply the display matrix.
            resize: see `PictureMaker.write`.

        Raises:
            MediaError: the file changed since its index was made, cannot be read, or the budget is over.
        """
        if self._closed:
            raise MediaError(self.name, "the video was closed", "Read frames inside the with block")
        if not places:
            return Filled(frozenset(), 0)
        with _Budget(self) as deadline:
            packets = self._open_packets(deadline)
            groups = plan_groups(self.index, sorted(places))
            packet_places = {int(self.index.display[number]): where for number, where in places.items()}

            def deliverer(maker: PictureMaker):
                def deliver(packet: int, frame: VideoFrame) -> None:
                    first, *others = packet_places[packet]
                    maker.write(frame, out[first], self._matrix_of(frame) if rotate else None, resize)
                    for other in others:
                        out[other] = out[first]

                return deliver

            workers = self._get_workers(min(self._threads, len(groups)))
            tasks = [(decoder, deliverer(maker)) for decoder, maker in workers]
            outcome: Outcome = run_groups(Stream.of(self.index, packets), groups, tasks, deadline)
        rank = self.index.rank
        for packet in outcome.damaged - outcome.delivered:
            out[packet_places[packet]] = 0
        return Filled(frozenset(int(rank[packet]) for packet in outcome.damaged), outcome.decoded)

    def _matrix_of(self, frame: VideoFrame) -> Matrix:
        """The display matrix to apply. Asked of one frame only: PyAV's side data keep a frame alive until garbage collection."""
        if self._matrix is None:
            own, said = display_matrix(frame), self.index.stream.matrix
            if own is not None and is_turned(own) != is_turned(said):
                reason = "its pictures are turned by the stream and not by the container"
                raise MediaError(self.name, reason, "Pass rotate=False, or re-encode the file")
            self._matrix = own or said
        return self._matrix

    # opening -------------------------------------------------------------------------------------------------------------------

    def _make_index(self, deadline: float | None) -> FrameIndex:
        table, cut = self._read_tables(), False
        if table is None:
            self._first = OpenStream(self._source)
            table, self._packets, cut = scan_packets(self._first, self._source, truncated=self._truncated, deadline=deadline)
            if self._torn and table.has_gap() and not self._truncated:
                reason = f"has a hole in it: only {len(table)} of its frames are there"
                raise MediaError(self.name, reason, "Copy the file again, or pass truncated=True for what is there")
            index = table.as_index()
            table = replace(table, stream=self._picture_of(table, self._packets, deadline))
        else:
            index = table.as_index()
        if index is None:
            index = self._count_by_decoding(table, self._packets or FilePackets(self._source, table), deadline, cut=cut)
        return replace(index, stream=table.stream, source_size=self._source.size, source_mtime_ns=self._source.mtime_ns)

    def _read_tables(self) -> PacketTable | None:
        """The packets from the container's own tables, None where FFmpeg must scan them."""
        head = self._source.read_at(0, 12)
        try:
            if looks_like_mp4(head):
                table, claimed = read_mp4(self._source)
                cut = claimed > self._source.size
            elif looks_like_matroska(head):
                (table, cut), claimed = read_matroska(self._source), 0
            else:
                return None
        except NoVideoTrack as error:
            raise MediaError(self.name, str(error), "Give a file with a picture track") from error
        except UnreadableTable as error:
            self._torn = isinstance(error, DamagedTable)
            return None
        if not len(table):
            return None
        whole = table.offset + table.size <= self._source.size
        if cut or not whole.all():
            count = len(table) if whole.all() else int(np.argmin(whole))
            if not self._truncated or not count:
                raise cut_off(self.name, count, len(table) if claimed else None)
            table = table.first(count)
        return table

    def _picture_of(self, table: PacketTable, packets: CopiedPackets, deadline: float | None):
        """The stream's description with what only its first picture tells: its size and its display matrix."""
        found: list[VideoFrame] = []

        def take(frame: VideoFrame) -> bool:
            found.append(frame)
            return False

        decode_all(packets, len(table), self._get_workers(1)[0][0], deadline, take)
        if not found:
            raise MediaError(self.name, "no frame could be decoded", _DAMAGED)
        matrix = display_matrix(found[0]) or (1, 0, 0, 1)
        return replace(table.stream, width=found[0].width, height=found[0].height, matrix=matrix)

    def _count_by_decoding(self, table: PacketTable, packets: Packets, deadline: float | None, *, cut: bool) -> FrameIndex:
        seen: dict[int, None] = {}

        def take(frame: VideoFrame) -> bool:
            if frame.pts is not None and 0 <= frame.pts < len(table):
                seen.setdefault(frame.pts)
            return True

        decode_all(packets, len(table), self._get_workers(1, table)[0][0], deadline, take)
        display = np.array([number for number in seen if not table.discard[number]], np.int64)
        if not len(display):
            raise MediaError(self.name, "no frame could be decoded", _DAMAGED)
        return table.as_index_of(display, cut=cut)

    def _open_packets(self, deadline: float | None) -> Packets:
        if not self._fresh:
            index, source = self.index, self._source
            known = index.source_mtime_ns and source.mtime_ns
            if index.source_size != source.size or (known and index.source_mtime_ns != source.mtime_ns):
                raise MediaError(self.name, "has changed since its index was made", "Make the index again")
            if index.stream.layout == "packets":
                self._first = OpenStream(source)
                table, copied, _ = scan_packets(self._first, source, truncated=True, deadline=deadline)
                self._packets = copied
                if not np.array_equal(table.size, index.size):
                    raise MediaError(self.name, "does not have the packets of its index", "Make the index again")
            self._fresh = True
        if self._packets is None:
            self._packets = FilePackets(self._source, self.index)
        return self._packets

    def _get_workers(self, count: int, table: PacketTable | None = None) -> list[tuple[Decoder, PictureMaker]]:
        while len(self._workers) < count:
            if self._first is None:
                decoder: Decoder = self._own_decoder(table.stream if table is not None else self.index.stream)
            else:
                # A stream that FFmpeg opened is decoded with what FFmpeg learnt of it.
                decoder = OpenStream(self._source) if self._workers else self._first
            self._workers.append((decoder, PictureMaker()))
        return self._workers[:count]

    def _own_decoder(self, stream: StreamInfo) -> OwnDecoder:
        # The package before any module of it: `from av.error` takes the lock of av.error and then av's, while a thread that is
        # loading av takes them the other way round; Python then breaks the deadlock by giving out half-loaded modules.
        import av  # noqa: F401
        from av.error import FFmpegError

        try:
            return OwnDecoder(stream)
        except (FFmpegError, ValueError, LookupError) as error:
            mend = "Install a PyAV with that decoder, or re-encode the file"
            raise MediaError(self.name, f"cannot be decoded: no decoder for {stream.codec} ({error})", mend) from error


class _Budget:
    """A block of work with a deadline; going over it is a MediaError."""

    def __init__(self, reader: ContainerReader) -> None:
        self._reader = reader

    def __enter__(self) -> float | None:
        budget = self._reader._budget
        return None if budget is None else time.monotonic() + budget

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OverBudget):
            reader = self._reader
            raise MediaError(reader.name, f"took longer than {reader._budget:g} s", "Raise budget, or leave it out") from error
