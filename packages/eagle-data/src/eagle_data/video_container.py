"""Video containers read through PyAV: an index of displayed frames, and exact decoding of some of them.

The index comes from one pass over the packets (no decoding) where packets and frames are known to agree, else from decoding
everything. Frames are found by presentation time from the nearest keyframe and checked; what does not turn up is decoded again
from the start. Opened through `eagle_data.video`, whose `FrameReader` it implements.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from .declared_size import declared_size
from .errors import MediaError
from .packet_index import PacketIndex, PacketScan, scan_packets
from .video_picture import PictureMaker, display_matrix, resized

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["ContainerReader"]

# Only single-file formats: playlists, concat scripts and image patterns would let a local file open other files or addresses.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,mxf,nut,yuv4mpegpipe,rm,dv,wtv"
# Containers whose seek tables were found exact; the others (MPEG-TS above all) are decoded in order.
_SEEKABLE = ("mov", "matroska")
_DAMAGED = "Copy the file again, or re-encode it with ffmpeg"


class ContainerReader:
    """One open container. Implements `video.FrameReader`; decodes in one thread, since data loaders already use every core."""

    def __init__(self, source: str | bytes, name: str) -> None:
        self.name = name
        self._source = source
        self._damaged: set[int] = set()
        self._position = 0
        self._container: InputContainer | None = None
        self._picture = PictureMaker()
        try:
            self._stream = self._open()
            self._index = self._scan()
            self.times = self._count_by_decoding() if self._index is None else self._times(self._index.pts, self._index.end)
            average = self._stream.average_rate
            self.rate: float | None = float(average) if average else None
            self._read_geometry()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the container; without this PyAV keeps its buffers until garbage collection."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted frames in order; see `video.FrameReader`."""
        frames = self._read_counted(wanted) if self._index is None else self._read_timed(wanted, self._index)
        for number, frame in frames:
            yield number, resized(self._picture(frame), size or (self.width, self.height))

    # opening -------------------------------------------------------------------------------------------------------------------

    def _open(self) -> VideoStream:
        import av
        from av.error import FFmpegError
        from av.stream import Disposition

        self.close()
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        try:
            if isinstance(self._source, bytes):
                container = av.open(io.BytesIO(self._source), "r", container_options=options)
            else:
                # The prefix keeps a name such as "concat:a|b" or "http:x" from being taken for a protocol.
                container = av.open(f"file:{self._source}", "r", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(
                self.name, f"cannot be opened as a video ({_cause(error)})", "Check that it is a complete video file"
            ) from error
        self._container = container
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise MediaError(self.name, "has no video stream", "Give a file with a picture track")
        stream = streams[0]
        stream.codec_context.thread_count = 1
        self._position = 0
        return stream

    def _opened(self) -> InputContainer:
        if self._container is None:
            raise MediaError(self.name, "the video was closed", "Read frames inside the with block")
        return self._container

    def _scan(self) -> PacketIndex | None:
        from av.error import FFmpegError

        try:
            scan = scan_packets(self._opened(), self._stream)
        except (FFmpegError, OSError) as error:
            raise MediaError(self.name, f"breaks off before its end ({_cause(error)})", _DAMAGED) from error
        self._check_complete(scan)
        return scan.index

    def _check_complete(self, scan: PacketScan) -> None:
        """Refuse a file that is shorter than it says itself, in bytes or in seconds."""
        if scan.packets == 0:
            raise MediaError(self.name, "holds no video frames", _DAMAGED)
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else open(self._source, "rb") as file:
            declared, size = declared_size(file), file.seek(0, io.SEEK_END)
        container = self._opened()
        # Matroska has no frame count but declares how long its longest track lasts; half a second allows for muxers' rounding.
        seconds = Fraction(container.duration or 0, 1_000_000) if "matroska" in container.format.name else Fraction(0)
        if (declared is not None and declared > size) or seconds - scan.media_end > Fraction(1, 2):
            raise MediaError(self.name, "is truncated: the file ends before the video does", _DAMAGED)

    def _times(self, pts: np.ndarray, end: int) -> np.ndarray:
        base = self._stream.time_base or Fraction(1, 1_000_000)
        if end <= int(pts[-1]):
            rate = self._stream.average_rate or Fraction(1)
            end = int(pts[-1]) + max(int(1 / (rate * base)), 1)
        ticks = np.append(pts, end) - pts[0]
        return ticks * base.numerator / base.denominator

    def _count_by_decoding(self) -> np.ndarray:
        """Times of all displayed frames, found by decoding the whole stream; remembers the damaged ones."""
        stamps: list[int | None] = []
        group, hurt, duration = 0, False, 0
        for frame in self._decode(0):
            if isinstance(frame, int):
                hurt = True
                continue
            if frame.key_frame:
                group, hurt = len(stamps), False
            hurt = hurt or bool(frame.is_corrupt)
            if hurt:
                # Without packet numbers it is unknown which pictures lean on the damaged one: all of its group may.
                self._damaged.update(range(group, len(stamps) + 1))
            stamps.append(frame.pts)
            duration = frame.duration or duration
        known = np.array([stamp for stamp in stamps if stamp is not None], np.int64)
        if not stamps:
            raise MediaError(self.name, "no frame could be decoded", _DAMAGED)
        if len(known) == len(stamps) and (len(known) == 1 or np.diff(known).min() > 0):
            return self._times(known, int(known[-1]) + int(duration))
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        return np.arange(len(stamps) + 1) / rate

    def _read_geometry(self) -> None:
        """Displayed size and rotation, which may only stand in the first picture."""
        frame = next((frame for frame in self._decode(0) if not isinstance(frame, int)), None)
        if frame is None:
            raise MediaError(self.name, "no frame could be decoded", _DAMAGED)
        picture = self._picture(frame)
        self.height, self.width = picture.shape[:2]
        a, b = display_matrix(frame)[:2]
        self.rotation = round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    # decoding ------------------------------------------------------------------------------------------------------------------

    def _read_counted(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        pending = deque(wanted)
        number = 0
        for frame in self._decode(0):
            if isinstance(frame, int):
                continue
            if pending and number == pending[0]:
                if number in self._damaged:
                    raise MediaError(self.name, f"frame {number} of the whole file is damaged", _DAMAGED)
                yield pending.popleft(), frame
            if not pending:
                return
            number += 1

    def _read_timed(self, wanted: Sequence[int], index: PacketIndex) -> Iterator[tuple[int, VideoFrame]]:
        number_of = {int(index.pts[number]): number for number in wanted}
        pending = deque(sorted(number_of))
        seekable = self._opened().format.name.startswith(_SEEKABLE)
        from_start = not seekable
        while pending:
            key = 0 if from_start else index.key_before(pending[0])
            left = len(pending)
            for frame in self._run(index, key, pending, seekable):
                yield number_of[frame.pts or 0], frame
            if len(pending) < left:
                from_start = not seekable
            elif index.key_packet[key] == 0:
                raise MediaError(self.name, f"frame {number_of[pending[0]]} of the whole file is damaged or missing", _DAMAGED)
            else:
                # A "keyframe" that was none (gradual refresh) or damage before the frame: the whole history decides.
                from_start = True

    def _run(self, index: PacketIndex, key: int, pending: deque[int], seekable: bool) -> Iterator[VideoFrame]:
        """Decode on from keyframe `key` and pop what was pending, until a seek is worth more, or a frame is lost or damaged.

        A frame waits until everything decoded before it was shown, because a B-frame is shown before a picture that it leans
        on, and only that picture, when shown, says that it is damaged.
        """
        start, lost = index.key_pts[key], False
        damaged: list[int] = []
        held: deque[VideoFrame] = deque()
        for frame in self._decode(index.key_packet[key]):
            if isinstance(frame, int):
                damaged.append(frame)
                continue
            # Pictures shown before the keyframe we started from lean on pictures we skipped.
            if frame.pts is None or frame.pts < start or frame.pts not in index.packet_of:
                continue
            if frame.is_corrupt:
                damaged.append(index.packet_of[frame.pts])
            if not lost and len(held) < len(pending):
                lost = frame.pts > pending[len(held)]
                if frame.pts == pending[len(held)]:
                    held.append(frame)
            while held and index.horizon[index.packet_of[pending[0]]] <= frame.pts:
                if _leans_on(index, pending[0], damaged):
                    return
                pending.popleft()
                yield held.popleft()
            if held:
                continue
            if lost or not pending or (seekable and index.key_packet[index.key_before(pending[0])] > self._position):
                return
        while held and not _leans_on(index, pending[0], damaged):
            pending.popleft()
            yield held.popleft()

    def _decode(self, packet_number: int) -> Iterator[VideoFrame | int]:
        """Frames in display order from that packet on; a number stands for a packet that would not decode."""
        from av.error import FFmpegError

        for packet in self._packets(packet_number):
            try:
                frames = self._stream.codec_context.decode(packet)
            except (FFmpegError, ValueError):
                yield self._position - 1
                continue
            yield from frames

    def _packets(self, packet_number: int) -> Iterator[Packet | None]:
        """Video packets from that one on, then None to drain the decoder."""
        from av.error import FFmpegError

        try:
            packets = self._seek(packet_number) if packet_number > 0 else self._rewind()
            for packet in packets:
                self._position += 1
                yield packet
        except (FFmpegError, OSError) as error:
            raise MediaError(self.name, f"cannot be read on ({_cause(error)})", _DAMAGED) from error
        yield None

    def _rewind(self) -> Iterator[Packet]:
        # Opening again is the one way back to the beginning that every container gets right.
        self._stream = self._open()
        yield from self._demux()

    def _seek(self, packet_number: int) -> Iterator[Packet]:
        from av.error import FFmpegError

        index = self._index
        assert index is not None, "only an index gives packet numbers to seek to"
        at = index.key_packet.index(packet_number)
        for earlier in range(at, max(at - 3, -1), -1):
            try:
                self._opened().seek(index.key_seek[earlier], stream=self._stream, backward=True)
            except FFmpegError:
                break
            packets = self._demux()
            first = next(packets, None)
            landed = None if first is None or first.pts is None else index.packet_of.get(first.pts)
            if first is None or landed is None or landed > packet_number:
                continue
            yield from self._from(packet_number, landed, first, packets)
            return
        self._stream = self._open()
        packets = self._demux()
        first = next(packets, None)
        if first is not None:
            yield from self._from(packet_number, 0, first, packets)

    def _from(self, packet_number: int, landed: int, first: Packet, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Packets from `packet_number` on, when `first` is packet number `landed`."""
        self._position = packet_number
        for _ in range(landed, packet_number):
            following = next(packets, None)
            if following is None:
                return
            first = following
        yield first
        yield from packets

    def _demux(self) -> Iterator[Packet]:
        return (packet for packet in self._opened().demux(self._stream) if packet.size > 0)


def _leans_on(index: PacketIndex, pts: int, damaged: list[int]) -> bool:
    """Whether a damaged packet lies between the keyframe of the frame shown at `pts` and that frame, in decoding order."""
    return any(index.key_packet[index.key_before(pts)] <= packet <= index.packet_of[pts] for packet in damaged)


def _cause(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
