"""NAL units of H.264 and HEVC: which packets no other picture leans on, which are true restarts, how large a picture is.

Reads headers only. `droppable` is conservative: a packet that carries parameter sets, or whose type does not prove it, stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .bit_reader import BitReader, unescaped

__all__ = ["NalCodec", "nal_codec", "picture_size"]

_HEVC_NON_REFERENCE = frozenset((0, 2, 4, 6, 8))  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N (H.265 table 7-1)
_CHROMA_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}  # profiles with chroma_format_idc (7.3.2.1.1)


@dataclass(frozen=True)
class NalCodec:
    """How the packets of one stream are read.

    Attributes:
        hevc: HEVC, else H.264.
        length_size: bytes of the length before each unit, or 0 for start codes.
        top_layer: HEVC's highest temporal layer, or -1 when it is unknown and nothing may be dropped.
    """

    hevc: bool
    length_size: int
    top_layer: int = 0

    def units(self, packet: bytes) -> Iterator[int]:
        """Where the units of a packet start."""
        if not self.length_size:
            at = packet.find(b"\x00\x00\x01")
            while 0 <= at < len(packet) - 3:
                yield at + 3
                at = packet.find(b"\x00\x00\x01", at + 3)
            return
        at, head = 0, self.length_size
        while at + head < len(packet):
            yield at + head
            at += head + int.from_bytes(packet[at : at + head], "big")

    def droppable(self, packet: bytes) -> bool:
        """Whether decoding may leave the packet out without changing any other picture."""
        slices = False
        for at in self.units(packet):
            first = packet[at]
            if self.hevc:
                kind = first >> 1 & 63
                if kind >= 32:
                    if kind <= 34:
                        return False
                    continue
                layer = (packet[at + 1] & 7) - 1 if at + 1 < len(packet) else -1
                # Pictures of higher temporal layers may lean on a "non-reference" picture of a lower one (H.265 7.4.2.2).
                if kind not in _HEVC_NON_REFERENCE or self.top_layer < 0 or layer != self.top_layer:
                    return False
                slices = True
            else:
                kind = first & 31
                if kind in (7, 8, 13, 15):
                    return False
                if kind in (1, 2, 3, 4, 5):
                    if first & 0x60:
                        return False
                    slices = True
        return slices

    def restarts(self, packet: bytes) -> bool:
        """Whether decoding from this packet on depends on nothing before it: an IDR picture, or an IRAP picture of HEVC."""
        for at in self.units(packet):
            kind = packet[at] >> 1 & 63 if self.hevc else packet[at] & 31
            if (self.hevc and 16 <= kind <= 21) or (not self.hevc and kind == 5):
                return True
            if kind <= (31 if self.hevc else 5) and kind:
                return False
        return False


def nal_codec(codec: str, extradata: bytes) -> NalCodec | None:
    """How to read the packets of a stream of that codec, or None for codecs that are not made of NAL units."""
    if codec == "h264":
        wrapped = len(extradata) >= 7 and extradata[0] == 1
        return NalCodec(False, (extradata[4] & 3) + 1 if wrapped else 0)
    if codec == "hevc":
        wrapped = len(extradata) >= 23 and extradata[:3] not in (b"\x00\x00\x00", b"\x00\x00\x01")
        sets = _hevc_sets(extradata) if wrapped else ()
        # Start codes: the parameter sets come with the packets and may change, so nothing is dropped.
        layers = [nal[2] >> 1 & 7 for nal in sets if len(nal) > 2 and nal[0] >> 1 & 63 == 33]
        return NalCodec(True, (extradata[21] & 3) + 1 if wrapped else 0, max(layers, default=-1))
    return None


def picture_size(codec: str, extradata: bytes) -> tuple[int, int] | None:
    """Width and height that the first parameter set of an avcC or hvcC declares, after cropping; None when it cannot be told."""
    try:
        if codec == "h264" and len(extradata) > 8 and extradata[0] == 1 and extradata[5] & 31:
            length = int.from_bytes(extradata[6:8], "big")
            return _h264_size(BitReader(unescaped(extradata[9 : 8 + length])))
        if codec == "hevc" and len(extradata) > 23:
            nal = next((nal for nal in _hevc_sets(extradata) if nal and nal[0] >> 1 & 63 == 33), b"")
            return _hevc_size(BitReader(unescaped(nal[2:])))
    except EOFError:
        pass
    return None


def _hevc_sets(extradata: bytes) -> list[bytes]:
    """The parameter sets of an hvcC (ISO 14496-15, 8.3.3.1)."""
    at, found = 23, []
    for _ in range(extradata[22] if len(extradata) > 22 else 0):
        count = int.from_bytes(extradata[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            length = int.from_bytes(extradata[at : at + 2], "big")
            if at + 2 + length > len(extradata):
                return found
            found.append(extradata[at + 2 : at + 2 + length])
            at += 2 + length
    return found


def _h264_size(bits: BitReader) -> tuple[int, int]:
    """H.264 7.3.2.1.1, up to the cropping."""
    profile = bits.bits(8)
    bits.bits(16)
    bits.ue()
    chroma = 1
    if profile in _CHROMA_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            chroma = 0 if bits.bits(1) else 3
        bits.ue()
        bits.ue()
        bits.bits(1)
        if bits.bits(1):
            for number in range(8 if chroma != 3 else 12):
                if bits.bits(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.ue()
    kind = bits.ue()
    if kind == 0:
        bits.ue()
    elif kind == 1:
        bits.bits(1)
        bits.se()
        bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue()
    bits.bits(1)
    width, height = 16 * (bits.ue() + 1), 16 * (bits.ue() + 1)
    frames_only = bits.bits(1)
    if not frames_only:
        height *= 2
        bits.bits(1)
    bits.bits(1)
    if not bits.bits(1):
        return width, height
    across = 2 if chroma in (1, 2) else 1
    down = (2 if chroma == 1 else 1) * (2 - frames_only)
    left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
    return width - across * (left + right), height - down * (top + bottom)


def _skip_scaling_list(bits: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _hevc_size(bits: BitReader) -> tuple[int, int]:
    """H.265 7.3.2.2.1, up to the conformance window."""
    bits.bits(4)
    layers = bits.bits(3)
    bits.bits(1 + 88 + 8)
    present = [(bits.bits(1), bits.bits(1)) for _ in range(layers)]
    if layers:
        bits.bits(2 * (8 - layers))
    for profile, level in present:
        bits.bits(88 * profile + 8 * level)
    bits.ue()
    chroma = bits.ue()
    if chroma == 3:
        bits.bits(1)
    width, height = bits.ue(), bits.ue()
    if not bits.bits(1):
        return width, height
    across, down = (2 if chroma in (1, 2) else 1), (2 if chroma == 1 else 1)
    left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
    return width - across * (left + right), height - down * (top + bottom)
