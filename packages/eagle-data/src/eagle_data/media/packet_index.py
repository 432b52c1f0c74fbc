"""The packets of any container by one pass of FFmpeg's demuxer: for containers without a table that this package reads itself.

Promises that a local file cannot make FFmpeg open another file or address. Copies the packets out as it goes (see `remux`), since
seek tables of such containers are not exact. Decodes nothing.
"""

from __future__ import annotations

import time
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MediaError
from .byte_source import ByteSource, SourceReader
from .declared_size import declared_size
from .decode import OverBudget
from .frame_index import NO_TIME, StreamInfo
from .packet_table import PacketTable
from .remux import CopiedPackets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["OpenStream", "scan_packets"]

# Only single-file formats: playlists, concat scripts and image patterns would let a local file open other files or addresses.
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,mxf,nut,yuv4mpegpipe,rm,dv,wtv"
# Containers that store presentation times; for the others (AVI, raw streams) FFmpeg guesses them, wrongly once B-frames come in.
_TIMED = ("mov", "matroska", "mpegts", "flv")
_DAMAGED = "Copy the file again, or re-encode it with ffmpeg"


class OpenStream:
    """The first picture stream of a container, opened by FFmpeg. Its codec context is a decoder while it is open."""

    def __init__(self, source: ByteSource) -> None:
        import av  # first, as in `ContainerReader._own_decoder`
        from av.error import FFmpegError
        from av.stream import Disposition

        self.name = source.name
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        try:
            if source.path is None:
                opened = av.open(SourceReader(source), "r", container_options=options)
            else:
                # The prefix keeps a name such as "concat:a|b" or "http:x" from being taken for a protocol.
                opened = av.open(f"file:{source.path}", "r", container_options=options)
        except (FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            mend = "Check that it is a complete video file"
            raise MediaError(self.name, f"cannot be opened as a video ({cause(error)})", mend) from error
        self._container: InputContainer | None = opened
        streams = [stream for stream in opened.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            self.close()
            raise MediaError(self.name, "has no video stream", "Give a file with a picture track")
        self.stream: VideoStream = streams[0]
        # PyAV has None here, or a context without a codec, for a codec that FFmpeg does not know.
        context: Any = self.stream.codec_context
        if context is None or getattr(context, "codec", None) is None:
            self.close()
            raise MediaError(self.name, "its codec is unknown to FFmpeg", "Re-encode the file with ffmpeg")
        self.context: VideoCodecContext = context
        self.context.thread_count = 1

    @property
    def container(self) -> InputContainer:
        """The open container."""
        assert self._container is not None, "closed"
        return self._container

    def close(self) -> None:
        """Release the container; without this PyAV keeps its buffers until garbage collection."""
        if self._container is not None:
            self._container.close()
            self._container = None


def scan_packets(
    opened: OpenStream, source: ByteSource, *, truncated: bool, deadline: float | None
) -> tuple[PacketTable, CopiedPackets, bool]:
    """Every packet of the stream: its table, a copy, and whether the file ends before the video does.

    Args:
        opened: at its beginning; it is read to its end.
        source: the same file.
        truncated: accept a file that ends before it should.
        deadline: as in `run_groups`.

    Raises:
        MediaError: no packet, or a file that breaks off before its own end.
        OverBudget: see `run_groups`.
    """
    from av.error import FFmpegError

    rows: list[tuple[int, int, int, bool, int, bool]] = []
    packets = CopiedPackets()
    media_end, cut = Fraction(0), False
    stream, container = opened.stream, opened.container
    try:
        for packet in container.demux():
            if deadline is not None and time.monotonic() > deadline:
                raise OverBudget
            if packet.size == 0:
                continue
            if packet.pts is not None and packet.time_base is not None:
                media_end = max(media_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index == stream.index:
                pts, dts = (NO_TIME if stamp is None else stamp for stamp in (packet.pts, packet.dts))
                rows.append((pts, dts, packet.duration or 0, packet.is_keyframe, packet.size, packet.is_discard))
                packets.add(packet)
    except (FFmpegError, OSError) as error:
        if not truncated or not rows:
            packets.close()
            mend = _DAMAGED + ("" if not rows else ", or pass truncated=True for what is there")
            raise MediaError(opened.name, f"breaks off before its end ({cause(error)}), {len(rows)} packets in", mend) from error
        cut = True
    except BaseException:
        packets.close()
        raise
    packets.finish()
    if not rows:
        raise MediaError(opened.name, "holds no video frames", _DAMAGED)
    declared = declared_size(SourceReader(source))
    # Matroska has no frame count but declares how long its longest track lasts; half a second allows for muxers' rounding.
    seconds = Fraction(container.duration or 0, 1_000_000) if "matroska" in container.format.name else Fraction(0)
    cut = cut or (declared is not None and declared > source.size) or seconds - media_end > Fraction(1, 2)
    if cut:
        # FFmpeg hands out the half of a packet that a cut leaves of it.
        packets.damaged |= {len(rows) - 1}
    if cut and not truncated:
        packets.close()
        raise cut_off(opened.name, len(rows), None)
    pts, dts, duration, keyframe, size, discard = (np.array(column) for column in zip(*rows, strict=True))
    codec = stream.codec_context
    info = StreamInfo(
        codec.codec.canonical_name,
        bytes(codec.extradata or b""),
        codec.width,
        codec.height,
        colour=(int(codec.colorspace), int(codec.color_range), int(codec.color_primaries), int(codec.color_trc)),
        rate=stream.average_rate or stream.guessed_rate or None,
    )
    table = PacketTable(
        pts=pts.astype(np.int64),
        dts=dts.astype(np.int64),
        duration=duration.astype(np.int64),
        keyframe=keyframe.astype(bool),
        size=size.astype(np.int64),
        offset=np.full(len(rows), -1, np.int64),
        discard=discard.astype(bool),
        time_base=stream.time_base or Fraction(1, 1_000_000),
        stream=info,
        trusted_times=container.format.name.startswith(_TIMED),
    )
    return table, packets, cut


def cut_off(name: str, whole: int, total: int | None) -> MediaError:
    """The error for a file that ends too early: `whole` of its `total` frames (None when it does not say) are there."""
    frames = f"{whole} frames" if total is None else f"{whole} of its {total} frames"
    reason = f"is truncated: the file ends before the video does, with {frames} whole"
    return MediaError(name, reason, "Copy the file again, or pass truncated=True for what is there")


def cause(error: BaseException) -> str:
    """What FFmpeg or the system says of an error."""
    return getattr(error, "strerror", None) or str(error)
