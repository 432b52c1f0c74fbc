"""The index of a video stream: one entry per packet in decode order, which of them are displayed, and how to set up a decoder.

A plain value of numpy arrays that can be stored beside a dataset (`save`, `load`), so that opening a video costs no I/O. Made by
`mp4_index`, `matroska_index` and `packet_index`; reads and decodes nothing itself.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import MediaError
from .packed_numbers import pack, unpack
from .picture import is_turned

__all__ = ["NO_TIME", "FrameIndex", "StreamInfo", "times_of"]

NO_TIME = -(1 << 63)
_MAGIC = b"EAGLEIDX2\n"
_COLUMNS = ("pts", "dts", "size", "offset", "display")


@dataclass(frozen=True)
class StreamInfo:
    """What a decoder and a viewer must know of a stream beside its packets.

    Attributes:
        codec: FFmpeg's name of the codec.
        extradata: its out-of-band headers.
        width, height: of a stored picture, before rotation.
        matrix: ``(a, b, c, d)``: a stored point (x, y) is shown at (ax + cy, bx + dy); only signs and relative sizes matter.
        colour: matrix coefficients, range, primaries and transfer that the container declares, as FFmpeg numbers them (2, 0, 2, 2
            when it does not).
        rate: nominal frames per second, or None.
        layout: the reader that can find the packets again: "mp4", "matroska", or "packets" for a scan.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)
    colour: tuple[int, int, int, int] = (2, 0, 2, 2)
    rate: Fraction | None = None
    layout: str = "packets"

    @property
    def turned(self) -> bool:
        """Whether width and height change places on display."""
        return is_turned(self.matrix)


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """One entry per packet, in decode order; times are ticks of `time_base`.

    Attributes:
        pts: int64 ``[packets]``, presentation times; `NO_TIME` where the container has none.
        dts: int64 ``[packets]``, decoding times, likewise.
        keyframe: bool ``[packets]``, decoding may start here.
        size: int64 ``[packets]``, bytes.
        offset: int64 ``[packets]``, place in the file, or -1 where a packet is not one stretch of it.
        display: int64 ``[frames]``, packet numbers in display order; pictures that are decoded but not shown are left out.
        times: float64 ``[frames + 1]``, seconds from the first displayed frame; the last entry is the end of the last frame.
        time_base: seconds per tick.
        end: tick at which the last frame's display ends (0 when the times are not the container's own).
        stream: see `StreamInfo`.
        source_size: bytes of the file that was indexed.
        source_mtime_ns: when that file was last changed, 0 for sources without such a time.
    """

    pts: np.ndarray
    dts: np.ndarray
    keyframe: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    display: np.ndarray
    times: np.ndarray
    time_base: Fraction
    end: int
    stream: StreamInfo
    source_size: int = 0
    source_mtime_ns: int = 0

    def __len__(self) -> int:
        return len(self.display)

    @cached_property
    def rank(self) -> np.ndarray:
        """int64 ``[packets]``: the frame number of each packet, -1 for packets that are not displayed."""
        rank = np.full(len(self.size), -1, np.int64)
        rank[self.display] = np.arange(len(self.display))
        return rank

    @cached_property
    def order(self) -> np.ndarray:
        """int64 ``[packets]``: a number that grows with display time, also for pictures that are not shown."""
        if self.timed:
            return self.pts
        return self.rank

    @property
    def timed(self) -> bool:
        """Whether the times are the container's own presentation times."""
        return self.end != 0

    def save(self, target: str | Path | BinaryIO) -> None:
        """Write the index to a file (atomically, when a path is given) or a binary file object."""
        data = self.to_bytes()
        if not isinstance(target, str | Path):
            target.write(data)
            return
        temporary = Path(f"{target}.{os.getpid()}.part")
        temporary.write_bytes(data)
        temporary.replace(target)

    def to_bytes(self) -> bytes:
        """The index as bytes; `from_bytes` is its inverse.

        A line of magic, a length, a JSON header, the columns as `packed_numbers` writes them, the keyframes as bits, and the
        times unless they follow from `pts`.
        """
        stream = asdict(self.stream) | {"extradata": self.stream.extradata.hex(), "rate": _text(self.stream.rate)}
        header = {
            "packets": len(self.size),
            "frames": len(self.display),
            "time_base": _text(self.time_base),
            "end": self.end,
            "stream": stream,
            "source_size": self.source_size,
            "source_mtime_ns": self.source_mtime_ns,
        }
        columns = {name: pack(getattr(self, name)) for name in _COLUMNS}
        header["kinds"] = {name: kind for name, (kind, _) in columns.items()}
        known = self.timed and np.array_equal(self.times, times_of(self.pts[self.display], self.end, self.time_base))
        header["times"] = "pts" if known else "stored"
        times = b"" if known else np.ascontiguousarray(self.times, "<f8").tobytes()
        text = json.dumps(header, separators=(",", ":")).encode()
        bits = np.packbits(self.keyframe).tobytes()
        return b"".join([_MAGIC, len(text).to_bytes(4, "little"), text, *(data for _, data in columns.values()), bits, times])

    @classmethod
    def load(cls, source: str | Path) -> FrameIndex:
        """Read what `save` wrote. Raises MediaError for a missing or damaged file."""
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise MediaError(str(source), f"cannot be read ({error.strerror})", "Make the index again") from error
        return cls.from_bytes(data, str(source))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<index>") -> FrameIndex:
        """The index in `data`; nothing in it is trusted. Raises MediaError when it is damaged."""
        try:
            if not data.startswith(_MAGIC):
                raise ValueError("another kind of file")
            at = len(_MAGIC) + 4
            length = int.from_bytes(data[at - 4 : at], "little")
            header = json.loads(data[at : at + length])
            packets, frames = int(header["packets"]), int(header["frames"])
            at += length
            arrays = {}
            for key in _COLUMNS:
                arrays[key], at = unpack(header["kinds"][key], frames if key == "display" else packets, data, at)
            bits = np.frombuffer(data, np.uint8, -(-packets // 8), at)
            arrays["keyframe"] = np.unpackbits(bits, count=packets).astype(bool)
            at += len(bits)
            if arrays["display"].min() < 0 or arrays["display"].max() >= packets:
                raise ValueError("packet numbers out of range")
            if header["times"] == "pts":
                pts, base = arrays["pts"][arrays["display"]], Fraction(header["time_base"])
                arrays["times"] = times_of(pts, int(header["end"]), base)
            else:
                arrays["times"] = np.frombuffer(data, "<f8", frames + 1, at)
                at += arrays["times"].nbytes
            if at != len(data):
                raise ValueError("wrong length")
            stream = dict(header["stream"])
            stream["extradata"] = bytes.fromhex(stream["extradata"])
            stream["rate"] = Fraction(stream["rate"]) if stream["rate"] else None
            stream["matrix"], stream["colour"] = tuple(stream["matrix"]), tuple(stream["colour"])
            if set(stream) != {item.name for item in fields(StreamInfo)}:
                raise ValueError("unknown stream fields")
            index = cls(
                **arrays,
                time_base=Fraction(header["time_base"]),
                end=int(header["end"]),
                stream=StreamInfo(**stream),
                source_size=int(header["source_size"]),
                source_mtime_ns=int(header["source_mtime_ns"]),
            )
            if (index.size < 0).any() or (index.offset < -1).any():
                raise ValueError("packets out of range")
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, MemoryError) as error:
            raise MediaError(name, f"is not a frame index of this version ({error})", "Make the index again") from error
        return index


def times_of(pts: np.ndarray, end: int, time_base: Fraction) -> np.ndarray:
    """float64 ``[frames + 1]``: seconds from the first of int64 ``[frames]`` presentation times, and of `end`."""
    return (np.append(pts, end) - pts[0]) * time_base.numerator / time_base.denominator


def _text(value: Fraction | None) -> str | None:
    return None if value is None else f"{value.numerator}/{value.denominator}"
