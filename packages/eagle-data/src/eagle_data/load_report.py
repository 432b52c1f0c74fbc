"""What a loader has yielded so far, in numbers that travel with its state: packs, samples, and media that could not be read.

Bounded whatever the data: totals, and the first places with their reasons, cut to a fixed length in JSON. Not a log of every
failure: `Pack.failures` has them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate, takewhile
from typing import Any

from eagle_data.pack_loading import Pack

PLACES_KEPT = 20
"""Failures that a report keeps with place and reason."""
BYTES_KEPT = 600
"""Bytes of a place or a reason that a report keeps, as JSON writes them (12 for an emoji), so that a state of any data stays
under 100 kB."""


@dataclass
class LoadReport:
    """`packs`, `samples`, samples whose media could not be read (`failed`), how many of those got a stand-in (`replaced`) or
    stayed with zero pixels and nothing supervised (`blanked`), and the `first` failures as `(where, reason)`.

    With one rank it goes on where the state was taken; with several it counts what this rank has yielded.
    """

    packs: int = 0
    samples: int = 0
    failed: int = 0
    replaced: int = 0
    blanked: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def add(self, pack: Pack) -> None:
        """Count a pack that was yielded."""
        self.packs += 1
        self.samples += len(pack.samples)
        self.failed += len(pack.failures)
        self.replaced += len(pack.stand_ins)
        self.blanked += len(pack.blanks)
        for where, reason in pack.failures[: PLACES_KEPT - len(self.first)]:
            self.first.append((where[len(where) - _letters_kept(reversed(where)) :], reason[: _letters_kept(reason)]))

    def state(self) -> dict[str, Any]:
        """The numbers as JSON values; `from_state` makes a report of them."""
        return {**asdict(self), "first": [list(place) for place in self.first]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LoadReport:
        """A report that goes on from `state`."""
        return cls(**{**state, "first": [(where, reason) for where, reason in state["first"]]})


def _letters_kept(letters: Iterable[str]) -> int:
    """How many of `letters`, from the first on, JSON writes in `BYTES_KEPT`."""
    sizes = accumulate(len(json.dumps(letter)) - 2 for letter in letters)
    return sum(1 for _ in takewhile(lambda size: size <= BYTES_KEPT, sizes))


__all__ = ["LoadReport"]
