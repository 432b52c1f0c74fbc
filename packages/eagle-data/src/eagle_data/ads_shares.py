"""How several videos and documents of one sample share a number of frames: one at a time, in proportion to what each wishes for.

The next frame goes to the one whose wish per frame held is the largest (D'Hondt's rule), ties to the first; so the share of each
grows with the total and never shrinks. The paper leaves several videos open.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


class FrameShares:
    """Frames of each video for every total between the sum of `floors` and the sum of `wishes`.

    `steps` is the number of frames that can be added to the floors: at most `most` frames in all, and no more than wished.
    """

    def __init__(self, wishes: Sequence[int], floors: Sequence[int], *, most: int | None = None):
        self.floors = tuple(floors)
        self.steps = sum(wishes) - sum(floors)
        if most is not None:
            self.steps = max(0, min(self.steps, most - sum(floors)))
        self._turns: list[list[int]] | None = None
        if len(self.floors) > 1 and self.steps:
            self._turns = _turns(wishes, floors, self.steps)

    def at(self, step: int) -> tuple[int, ...]:
        """Frames of each video when `step` frames (0 to `steps`) are added to the floors."""
        if self._turns is None:
            return tuple(floor + step for floor in self.floors) if step else self.floors
        return tuple(floor + bisect_left(turns, step) for floor, turns in zip(self.floors, self._turns, strict=True))


def _turns(wishes: Sequence[int], floors: Sequence[int], steps: int) -> list[list[int]]:
    """For each video the numbers (from 0, ascending) of the steps that give it a frame."""
    quotients, owners = [], []
    for i, (wish, floor) in enumerate(zip(wishes, floors, strict=True)):
        held = np.arange(floor, min(wish, floor + steps))
        quotients.append(wish / (held + 1))
        owners.append(np.full(len(held), i))
    order = np.concatenate(owners)[np.argsort(-np.concatenate(quotients), kind="stable")][:steps]
    return [np.flatnonzero(order == i).tolist() for i in range(len(floors))]
