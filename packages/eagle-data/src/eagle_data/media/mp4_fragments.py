"""Movie fragments (moof boxes): the packets of one track in each of them.

Fills in defaults from the track fragment header and the movie's trex box as ISO 14496-12, 8.8 says. Reads tables only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mp4_boxes import Box
from .packet_table import UnreadableTable

__all__ = ["FragmentTrack", "read_fragment"]

_NOT_A_KEYFRAME = 0x10000 | 0x1000000  # sample_is_non_sync_sample, sample_depends_on = 1


@dataclass
class FragmentTrack:
    """What reading carries from fragment to fragment.

    Attributes:
        track_id: the track to read.
        clock: decoding time of the next sample, used where a fragment does not give its own.
        duration, size, flags: for samples that have none.
    """

    track_id: int
    clock: int
    duration: int
    size: int
    flags: int


def read_fragment(fragment: Box, start: int, track: FragmentTrack, file_size: int) -> list[np.ndarray] | None:
    """pts, dts, duration, keyframe, size and offset of the track's packets in the moof box at byte `start`; None for no packet.

    Raises UnreadableTable for a table that does not fit.
    """
    parts = []
    implicit = start
    for part in fragment.children():
        if part.kind != b"traf":
            continue
        header = part.need(b"tfhd")
        flags, at = header.number(1, 3), 8
        base = start if flags & 0x20000 else implicit
        values = [track.duration, track.size, track.flags]
        if flags & 1:
            base, at = header.number(at, 8), at + 8
        if flags & 2:
            if header.number(at, 4) != 1:
                raise UnreadableTable("a fragment changes its sample description")
            at += 4
        for place, bit in enumerate((8, 16, 32)):
            if flags & bit:
                values[place], at = header.number(at, 4), at + 4
        mine = header.number(4, 4) == track.track_id
        time = part.child(b"tfdt")
        if mine and time is not None:
            track.clock = time.number(4, 8) if time.number(0, 1) == 1 else time.number(4, 4)
            if track.clock >= 1 << 62:
                raise UnreadableTable("a fragment lies beyond any time")
        place = base
        for run in part.children():
            if run.kind == b"trun":
                columns, place = _read_run(run, base, place, values, track.clock, file_size)
                if mine and columns is not None:
                    track.clock = int(columns[1][-1] + columns[2][-1])
                    parts.append(columns)
        implicit = place
    return [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else None


def _read_run(
    run: Box, base: int, place: int, defaults: list[int], clock: int, file_size: int
) -> tuple[list[np.ndarray] | None, int]:
    """The columns of one trun box, and where the data after it starts."""
    flags, count, at = run.number(1, 3), run.number(4, 4), 8
    if flags & 1:
        place, at = base + run.signed(at, 4), at + 4
    first_flags = None
    if flags & 4:
        first_flags, at = run.number(at, 4), at + 4
    fields = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    if not fields and count * max(defaults[1], 1) > file_size:
        raise UnreadableTable("a fragment claims more samples than the file can hold")
    if not count:
        return None, place
    table = run.table(at, count, len(fields), ">u4") if fields else np.zeros((count, 0), ">u4")

    def column(bit: int, default: int) -> np.ndarray:
        return table[:, fields.index(bit)].astype(np.int64) if bit in fields else np.full(count, default, np.int64)

    duration, size, flag = column(0x100, defaults[0]), column(0x200, defaults[1]), column(0x400, defaults[2])
    if first_flags is not None:
        flag[0] = first_flags
    offset = column(0x800, 0).astype(np.uint32).view(np.int32).astype(np.int64)
    dts = clock + np.cumsum(duration) - duration
    ends = place + np.cumsum(size)
    if place < 0:
        raise UnreadableTable("a fragment's data lie before the file")
    return [dts + offset, dts, duration, (flag & _NOT_A_KEYFRAME) == 0, size, ends - size], int(ends[-1])
