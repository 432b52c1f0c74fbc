"""Video containers read through PyAV: an index of displayed frames, and exact decoding of some of them.

The index comes from one pass over the packets (no decoding) where packets and frames are known to agree, else from decoding
everything. Frames are found by presentation time from the nearest keyframe and checked; what does not turn up is decoded again
from the start. Opened through `eagle_data.video`, whose `FrameReader` it implements.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from .declared_size import declared_size
from .errors import MediaError
from .video_picture import display_matrix, resized, to_rgb

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
# Containers that store presentation times; for the others (AVI, raw streams) FFmpeg guesses them, wrongly once B-frames come in.
_TIMED = ("mov", "matroska", "mpegts", "flv")
# Codecs whose every packet is one displayed frame. VP8 hides reference frames, MPEG-4 packs B-frames, MPEG-2 may store fields.
_FRAME_PER_PACKET = ("h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "png", "rawvideo")
_DAMAGED = "Copy the file again, or re-encode it with ffmpeg"


@dataclass(frozen=True)
class _Index:
    """Displayed frames in order, and where decoding may start.

    `pts` int64 ``[frames]`` ascending, or None when frames can only be counted; `key_pts` ascending with `key_packet`, the
    position of each keyframe among the packets, and `key_seek`, the time to seek to; `packet_of` maps a packet's pts to its
    position.
    """

    pts: np.ndarray | None
    key_pts: list[int]
    key_packet: list[int]
    key_seek: list[int]
    packet_of: dict[int, int]


class ContainerReader:
    """One open container. Implements `video.FrameReader`; decodes in one thread, since data loaders already use every core."""

    def __init__(self, source: str | bytes, name: str) -> None:
        self.name = name
        self._source = source
        self._damaged: set[int] = set()
        self._position = 0
        self._container: InputContainer | None = None
        try:
            self._stream = self._open()
            self._index, self.times = self._scan()
            if self._index.pts is None:
                self.times = self._count_by_decoding()
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
        frames = self._read_counted(wanted) if self._index.pts is None else self._read_timed(wanted, self._index.pts)
        for number, frame in frames:
            yield number, resized(to_rgb(frame), size or (self.width, self.height))

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

    def _scan(self) -> tuple[_Index, np.ndarray]:
        """Demux every packet once. Gives the index and the times, or an index without pts where frames must be counted."""
        from av.error import FFmpegError

        stream, container = self._stream, self._opened()
        shown: list[int] = []
        keys: list[tuple[int, int, int]] = []
        packet_of: dict[int, int] = {}
        countable = stream.codec_context.codec.canonical_name in _FRAME_PER_PACKET and container.format.name.startswith(_TIMED)
        packets, last, last_end, media_end = 0, -math.inf, 0, Fraction(0)
        try:
            for packet in container.demux():
                if packet.size == 0:
                    continue
                if packet.pts is not None and packet.time_base is not None:
                    media_end = max(media_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index != stream.index:
                    continue
                if packet.pts is None or packet.pts in packet_of:
                    countable = False
                else:
                    packet_of[packet.pts] = packets
                    if packet.is_keyframe:
                        keys.append((packet.pts, packets, packet.pts if packet.dts is None else min(packet.dts, packet.pts)))
                    if not packet.is_discard:
                        shown.append(packet.pts)
                        if packet.pts > last:
                            last, last_end = packet.pts, packet.pts + (packet.duration or 0)
                packets += 1
        except (FFmpegError, OSError) as error:
            raise MediaError(self.name, f"breaks off after {packets} frames ({_cause(error)})", _DAMAGED) from error
        self._check_complete(packets, media_end)
        # Pictures before the first keyframe, in storage or on screen, may or may not decode: only trying tells.
        if not shown or not keys or keys[0][1] != 0 or min(shown) < keys[0][0]:
            countable = False
        if not countable:
            return _Index(None, [], [], [], {}), np.empty(0)
        keys.sort()
        pts = np.sort(np.array(shown, np.int64))
        index = _Index(pts, [k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys], packet_of)
        return index, self._times(pts, last_end)

    def _check_complete(self, packets: int, media_end: Fraction) -> None:
        """Refuse a file that is shorter than it says itself, in bytes or in seconds."""
        if packets == 0:
            raise MediaError(self.name, "holds no video frames", _DAMAGED)
        with io.BytesIO(self._source) if isinstance(self._source, bytes) else open(self._source, "rb") as file:
            declared, size = declared_size(file), file.seek(0, io.SEEK_END)
        container = self._opened()
        # Matroska has no frame count but declares how long its longest track lasts; half a second allows for muxers' rounding.
        seconds = Fraction(container.duration or 0, 1_000_000) if "matroska" in container.format.name else Fraction(0)
        if (declared is not None and declared > size) or seconds - media_end > Fraction(1, 2):
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
        tainted, duration = False, 0
        for frame in self._decode(0):
            if frame is None:
                tainted = True
                continue
            tainted = bool(frame.is_corrupt) or (tainted and not frame.key_frame)
            if tainted:
                self._damaged.add(len(stamps))
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
        frame = next((frame for frame in self._decode(0) if frame is not None), None)
        if frame is None:
            raise MediaError(self.name, "no frame could be decoded", _DAMAGED)
        picture = to_rgb(frame)
        self.height, self.width = picture.shape[:2]
        a, b = display_matrix(frame)[:2]
        self.rotation = round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360

    # decoding ------------------------------------------------------------------------------------------------------------------

    def _read_counted(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        pending = deque(wanted)
        number = 0
        for frame in self._decode(0):
            if frame is None:
                continue
            if pending and number == pending[0]:
                if number in self._damaged:
                    raise MediaError(self.name, f"frame {number} is damaged", _DAMAGED)
                yield pending.popleft(), frame
            if not pending:
                return
            number += 1

    def _read_timed(self, wanted: Sequence[int], pts: np.ndarray) -> Iterator[tuple[int, VideoFrame]]:
        number_of = {int(pts[number]): number for number in wanted}
        pending = deque(sorted(number_of))
        from_start = False
        while pending:
            key = 0 if from_start else self._key_before(pending[0])
            left = len(pending)
            for stamp, frame in self._run(key, pending):
                yield number_of[stamp], frame
            if len(pending) < left:
                from_start = False
            elif self._index.key_packet[key] == 0:
                raise MediaError(self.name, f"frame {number_of[pending[0]]} is damaged or missing", _DAMAGED)
            else:
                # A "keyframe" that was none (gradual refresh) or a frame hurt by damage before it: the whole history decides.
                from_start = True

    def _run(self, key: int, pending: deque[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode on from keyframe `key`, popping what is pending, until a seek is worth more or the first pending frame is
        lost."""
        start, tainted = self._index.key_pts[key], False
        for frame in self._decode(self._index.key_packet[key]):
            if frame is None:
                tainted = True
                continue
            # Pictures shown before the keyframe we started from lean on pictures we skipped.
            if frame.pts is None or frame.pts < start:
                continue
            tainted = bool(frame.is_corrupt) or (tainted and not frame.key_frame)
            if frame.pts < pending[0]:
                continue
            if frame.pts > pending[0] or tainted:
                return
            yield pending.popleft(), frame
            if not pending or self._index.key_packet[self._key_before(pending[0])] > self._position:
                return

    def _key_before(self, pts: int) -> int:
        """The keyframe to start from for the frame shown at `pts`: the last one shown at or before it, right for open GOPs
        too."""
        if not self._opened().format.name.startswith(_SEEKABLE):
            return 0
        return max(bisect_right(self._index.key_pts, pts) - 1, 0)

    def _decode(self, packet_number: int) -> Iterator[VideoFrame | None]:
        """Frames in display order from that packet on; None stands for a packet that would not decode."""
        from av.error import FFmpegError

        for packet in self._packets(packet_number):
            try:
                frames = self._stream.codec_context.decode(packet)
            except (FFmpegError, ValueError):
                yield None
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

        at = self._index.key_packet.index(packet_number)
        for earlier in range(at, max(at - 3, -1), -1):
            try:
                self._opened().seek(self._index.key_seek[earlier], stream=self._stream, backward=True)
            except FFmpegError:
                break
            packets = self._demux()
            first = next(packets, None)
            landed = None if first is None or first.pts is None else self._index.packet_of.get(first.pts)
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


def _cause(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
