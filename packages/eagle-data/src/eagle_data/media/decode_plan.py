"""What to decode for a set of frames, and which frames are cheapest: pure arithmetic on a frame index.

A plan is groups of targets that share a keyframe. For a target, decoding starts at the last keyframe shown at or before it, which
is right for open GOPs too (pictures shown before a keyframe but stored behind it belong to the one before). Feeds no decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .frame_index import NO_TIME, FrameIndex

__all__ = ["Group", "cheapest_of_segments", "plan_groups"]


@dataclass(frozen=True)
class Group:
    """Targets decoded in one go.

    Attributes:
        start: packet to start from.
        targets: packet numbers, ascending; the last one is the last packet to feed.
    """

    start: int
    targets: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The packet after the last one to feed."""
        return self.targets[-1] + 1

    @property
    def cost(self) -> int:
        """Packets between start and stop, an upper bound of the frames decoded."""
        return self.stop - self.start


def plan_groups(index: FrameIndex, frames: Sequence[int]) -> list[Group]:
    """Groups for the displayed frames with these numbers, ascending by start; no two of them overlap.

    Args:
        index: of the stream.
        frames: frame numbers in display order, without repetition.
    """
    if not len(frames):
        return []
    targets = index.display[np.asarray(frames, np.int64)]
    starts = start_packets(index, targets)
    order = np.lexsort((targets, starts))
    found: list[tuple[int, list[int]]] = []
    stop = -1
    for start, target in zip(starts[order].tolist(), targets[order].tolist(), strict=True):
        if found and (found[-1][0] == start or start < stop):
            found[-1][1].append(target)
        else:
            found.append((start, [target]))
            stop = 0
        stop = max(stop, target + 1)
    return [Group(start, tuple(sorted(members))) for start, members in found]


def start_packets(index: FrameIndex, targets: np.ndarray) -> np.ndarray:
    """int64 ``[targets]``: where decoding must start for each target packet; 0 where no keyframe is shown before it."""
    keys = np.flatnonzero(index.keyframe & (index.order > (NO_TIME if index.timed else -1)))
    if not len(keys):
        return np.zeros(len(targets), np.int64)
    order = index.order[keys]
    if (np.diff(order) <= 0).any():
        keep = order > np.maximum.accumulate(np.append(NO_TIME, order[:-1]))
        keys, order = keys[keep], order[keep]
    place = np.searchsorted(order, index.order[targets], side="right") - 1
    # A keyframe stored behind the target cannot be what it leans on.
    place = np.minimum(place, np.searchsorted(keys, targets, side="right") - 1)
    return np.where(place >= 0, keys[np.maximum(place, 0)], 0)


def cheapest_of_segments(index: FrameIndex, first: int, stop: int, count: int) -> np.ndarray:
    """int64 ``[count]``: for each of `count` equal stretches of time between two frames, the frame that costs least to decode.

    That is a keyframe if the stretch shows one, else the frame stored nearest behind its keyframe. A stretch in which no frame
    appears gives the frame on display when it begins.

    Args:
        index: of the stream.
        first: first frame that may be taken.
        stop: frame after the last one that may be taken; its time ends the last stretch.
        count: stretches.
    """
    times = index.times[first : stop + 1]
    edges = times[0] + (times[-1] - times[0]) * np.arange(count + 1) / count
    # The same instant by two routes of arithmetic differs by less than a microsecond.
    bounds = np.searchsorted(times[:-1], edges - 1e-6, side="left")
    bounds[-1] = stop - first
    packets = index.display[first:stop]
    depth = packets - start_packets(index, packets)
    chosen = np.empty(count, np.int64)
    for number in range(count):
        low, high = int(bounds[number]), int(bounds[number + 1])
        chosen[number] = first + (max(low - 1, 0) if high <= low else low + int(np.argmin(depth[low:high])))
    return chosen
