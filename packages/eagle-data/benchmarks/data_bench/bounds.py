"""How many frames must be decoded to show some frames of an H.264 MP4, counted from its packets; no decoding.

Two bounds: all frames from the start of each touched group of pictures to its last target, in decoding order; and the same less
the frames that no other refers to and nobody asked for. Not for: other codecs.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np

__all__ = ["Bounds", "Packets", "read_packets"]


@dataclass(frozen=True)
class Bounds:
    """Frames to decode: up to each target in its group of pictures, and without those that nothing refers to."""

    groups: int
    to_target: int
    references: int


@dataclass(frozen=True)
class Packets:
    """A stream's packets in decoding order: display order as packet numbers, keyframes, and which are referred to."""

    display: np.ndarray
    keyframe: np.ndarray
    reference: np.ndarray

    def bounds(self, indices: list[int]) -> Bounds:
        """What the frames with these display numbers need."""
        targets = self.display[np.unique(indices)]
        starts = np.flatnonzero(self.keyframe)
        group = np.searchsorted(starts, targets, side="right") - 1
        to_target = references = 0
        for number in np.unique(group):
            mine = targets[group == number]
            span = slice(int(starts[number]), int(mine.max()) + 1)
            to_target += span.stop - span.start
            references += int(self.reference[span].sum()) + int((~self.reference[mine]).sum())
        return Bounds(len(np.unique(group)), to_target, references)


def read_packets(path: str) -> Packets:
    """Scan the first video stream of an H.264 MP4; ValueError for another codec."""
    pts, keyframe, reference = [], [], []
    with av.open(path) as container:
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264" or not container.format.name.startswith("mov"):
            raise ValueError(
                f"{path}: {stream.codec_context.name} in {container.format.name}; bounds are counted for H.264 in MP4"
            )
        for packet in container.demux(stream):
            if packet.size:
                pts.append(packet.pts)
                keyframe.append(packet.is_keyframe)
                reference.append(is_reference(bytes(packet)))
    return Packets(np.argsort(np.array(pts), kind="stable"), np.array(keyframe), np.array(reference))


def is_reference(packet: bytes) -> bool:
    """Whether a picture slice in the packet has a nal_ref_idc other than 0 (ITU-T H.264, 7.3.1)."""
    at = 0
    while at + 5 <= len(packet):
        header = packet[at + 4]
        if header & 31 in (1, 5) and header & 0x60:
            return True
        at += 4 + int.from_bytes(packet[at : at + 4], "big")
    return False
