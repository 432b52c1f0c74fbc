"""Rows without media for tests of the stream: lengths and tiles as given, every token of a row is its number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from eagle_data.encode import Encoded
from eagle_data.media_index import PreparedMedia


@dataclass
class MadeUpRows:
    """`lengths` and `tiles` int32 `[rows]`; no row has pictures to decode, whatever its `tiles` say."""

    lengths: np.ndarray
    tiles: np.ndarray
    name: str = "rows"
    media: PreparedMedia = field(default_factory=PreparedMedia)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[Encoded, str]:
        ids = np.full(int(self.lengths[row]), row, dtype=np.int32)
        return Encoded(ids, ids, ()), self.where(row)

    def where(self, row: int) -> str:
        return f"{self.name}:{row}"

    def degraded(self, row: int) -> bool:
        return False


def made_up(count: int, longest: int, *, name: str = "rows", seed: int = 0) -> MadeUpRows:
    """`count` rows of 1 to `longest` tokens and 0 to 4 tiles."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count, dtype=np.int32)
    return MadeUpRows(lengths, rng.integers(0, 5, count, dtype=np.int32), name)
