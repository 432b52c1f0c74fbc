"""The index of a video stream, made from its packets without decoding: which frames are displayed when, and where decoding may
start.

Exact where a container stores presentation times and a codec puts one displayed frame into each packet; elsewhere there is no
index and the frames must be counted by decoding (`video_container` does). Reads through PyAV; decodes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["PacketIndex", "PacketScan", "scan_packets"]

# Containers that store presentation times; for the others (AVI, raw streams) FFmpeg guesses them, wrongly once B-frames come in.
_TIMED = ("mov", "matroska", "mpegts", "flv")
# Codecs whose every packet is one displayed frame. VP8 hides reference frames, MPEG-4 packs B-frames, MPEG-2 may store fields.
_FRAME_PER_PACKET = ("h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "png", "rawvideo")


@dataclass(frozen=True)
class PacketIndex:
    """Times are in the stream's time base; a packet's number is its place in storage (decoding) order.

    Attributes:
        pts: int64 ``[frames]``, displayed frames, ascending.
        end: when the last frame's display ends, or 0 when the container does not say.
        packet_of: packet number by pts, of displayed and discarded packets alike.
        horizon: int64 ``[packets]``, the latest pts among packets up to each one: when a decoder shows that time, it has shown
            everything that the packet can lean on.
        key_pts, key_packet, key_seek: per keyframe, ascending: its pts, its packet number, and the time to seek to.
    """

    pts: np.ndarray
    end: int
    packet_of: dict[int, int]
    horizon: np.ndarray
    key_pts: list[int]
    key_packet: list[int]
    key_seek: list[int]

    def key_before(self, pts: int) -> int:
        """The keyframe to start from for the frame shown at `pts`: the last one shown at or before it, right for open GOPs
        too."""
        return max(bisect_right(self.key_pts, pts) - 1, 0)


@dataclass(frozen=True)
class PacketScan:
    """What one pass over a container gave.

    Attributes:
        index: None when frames and packets need not agree.
        packets: video packets seen.
        media_end: seconds at which the last packet of any stream ends.
    """

    index: PacketIndex | None
    packets: int
    media_end: Fraction


def scan_packets(container: InputContainer, stream: VideoStream) -> PacketScan:
    """Read every packet of `container` once and index those of `stream`. Raises what PyAV raises."""
    shown: list[int] = []
    keys: list[tuple[int, int, int]] = []
    packet_of: dict[int, int] = {}
    packets, last, end, media_end = 0, None, 0, Fraction(0)
    exact = stream.codec_context.codec.canonical_name in _FRAME_PER_PACKET and container.format.name.startswith(_TIMED)
    for packet in container.demux():
        if packet.size == 0:
            continue
        if packet.pts is not None and packet.time_base is not None:
            media_end = max(media_end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream_index != stream.index:
            continue
        if packet.pts is None or packet.pts in packet_of:
            exact = False
        else:
            packet_of[packet.pts] = packets
            if packet.is_keyframe:
                keys.append((packet.pts, packets, packet.pts if packet.dts is None else min(packet.dts, packet.pts)))
            if not packet.is_discard:
                shown.append(packet.pts)
                if last is None or packet.pts > last:
                    last, end = packet.pts, packet.pts + (packet.duration or 0)
        packets += 1
    # Pictures before the first keyframe, in storage or on screen, may or may not decode: only trying tells.
    if not shown or not keys or keys[0][1] != 0 or min(shown) < keys[0][0] or keys != sorted(keys):
        exact = False
    if not exact:
        return PacketScan(None, packets, media_end)
    index = PacketIndex(
        pts=np.sort(np.array(shown, np.int64)),
        end=end,
        packet_of=packet_of,
        horizon=np.maximum.accumulate(np.array(list(packet_of), np.int64)),
        key_pts=[pts for pts, _, _ in keys],
        key_packet=[number for _, number, _ in keys],
        key_seek=[seek for _, _, seek in keys],
    )
    return PacketScan(index, packets, media_end)
