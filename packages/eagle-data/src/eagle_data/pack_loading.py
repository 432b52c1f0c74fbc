"""Loading one pack: rows to samples with pixels, and what is done about media that cannot be read.

Each file is tried once per pack and never again; what failed is in the pack's `failures`. The stand-in of a bad sample
follows from seed, epoch and draw, so every rank and worker chooses alike. Not for choosing what is in a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from eagle_data.collate import LoadedSample
from eagle_data.encode import IGNORE, Encoded
from eagle_data.epoch_order import permuted
from eagle_data.errors import EagleDataError
from eagle_data.media_index import PreparedMedia
from eagle_data.units import load_units

TileChoice: TypeAlias = Callable[[Sequence[Encoded]], Callable[[int], bool]]
"""From the samples of a pack, in order, to a predicate: whether to load a tile or frame, counted over the pack."""

BadMedia: TypeAlias = Literal["leave_out", "blank", "substitute"]
"""Leave the sample out; keep its tokens with zero pixels and nothing supervised; take another sample of its source."""

_STAND_INS_TRIED = 3
_STAND_INS_LOOKED_AT = 64


class Rows(Protocol):
    """What a loader needs of a dataset, as `PreparedDataset` has it; rows may be read from several threads at once."""

    name: str
    lengths: np.ndarray
    tiles: np.ndarray
    media: PreparedMedia

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> tuple[Encoded, str]: ...
    def where(self, row: int) -> str: ...
    def degraded(self, row: int) -> bool: ...


@dataclass(frozen=True)
class Source:
    """A prepared dataset and how it is mixed: `repeat` (fractional allowed) passes per epoch, augmentation or not."""

    dataset: Rows
    repeat: float = 1.0
    augment: bool = False


@dataclass(frozen=True)
class Pack:
    """The samples of one pack with their pixels, and what could not be loaded as `(where, reason)`.

    `position` counts packs over the whole stream. `stand_ins` are `(where, where)`: the sample that could not be read
    and the one that took its place. Where the loader has a `load`, `pixels` of a sample are the chosen tiles only.
    """

    samples: tuple[LoadedSample, ...]
    failures: tuple[tuple[str, str], ...]
    epoch: int
    position: int = 0
    stand_ins: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PackLoading:
    """Loads packs of `sources`. `load` chooses the tiles to decode, all of them when None."""

    sources: tuple[Source, ...]
    tile_size: int
    use_thumbnail: bool
    seed: int
    bad_media: BadMedia = "leave_out"
    load: TileChoice | None = None

    def __call__(self, epoch: int, position: int, members: Sequence[tuple[int, int, int]]) -> Pack:
        """The pack of `members`, each `(source, row, copy)`.

        With `load`, a sample that cannot be read stays, with zeros for its tiles, since ranks that do not read it have it as
        well; whoever gives `load` tells the other ranks of the failures.
        """
        samples, failures, stand_ins, first = [], [], [], 0
        stored = [self.sources[source].dataset[row] for source, row, _ in members]
        chosen = self.load([encoded for encoded, _ in stored]) if self.load else None
        for member, (encoded, where) in zip(members, stored, strict=True):
            wanted = None if chosen is None else [tile for tile in range(encoded.tiles) if chosen(first + tile)]
            first += encoded.tiles
            try:
                samples.append(
                    LoadedSample(encoded.input_ids, encoded.labels, self._pixels(encoded, epoch, member, wanted), where)
                )
            except EagleDataError as error:
                failures.append((where, str(error)))
                if wanted is not None:
                    zeros = np.zeros((len(wanted), 3, self.tile_size, self.tile_size), dtype=np.float32)
                    samples.append(LoadedSample(encoded.input_ids, encoded.labels, zeros, where))
                elif self.bad_media == "blank":
                    zeros = np.zeros((encoded.tiles, 3, self.tile_size, self.tile_size), dtype=np.float32)
                    samples.append(LoadedSample(encoded.input_ids, np.full_like(encoded.labels, IGNORE), zeros, where))
                elif self.bad_media == "substitute" and (found := self._stand_in(epoch, member)) is not None:
                    samples.append(found)
                    stand_ins.append((where, found.where))
        return Pack(tuple(samples), tuple(failures), epoch, position, tuple(stand_ins))

    def _pixels(self, encoded: Encoded, epoch: int, member: tuple[int, int, int], wanted: Sequence[int] | None) -> np.ndarray:
        source, row, copy = member
        augment = np.random.default_rng([self.seed, epoch, source, row, copy]) if self.sources[source].augment else None
        return load_units(
            encoded.units,
            tile_size=self.tile_size,
            use_thumbnail=self.use_thumbnail,
            augment=augment,
            wanted=wanted,
            media=self.sources[source].dataset.media,
        )

    def _stand_in(self, epoch: int, member: tuple[int, int, int]) -> LoadedSample | None:
        """A readable sample of the same source, no longer and with no more tiles; None when a few tries found none."""
        source, row, copy = member
        rows = self.sources[source].dataset
        looked_at = np.arange(min(len(rows), _STAND_INS_LOOKED_AT))
        others = permuted(looked_at, len(rows), "stand-in", self.seed, epoch, *member)
        fits = (rows.lengths[others] <= rows.lengths[row]) & (rows.tiles[others] <= rows.tiles[row]) & (others != row)
        for other in others[fits][:_STAND_INS_TRIED].tolist():
            encoded, where = rows[other]
            try:
                pixels = self._pixels(encoded, epoch, (source, other, copy), None)
            except EagleDataError:
                continue
            return LoadedSample(encoded.input_ids, encoded.labels, pixels, where)
        return None


__all__ = ["BadMedia", "Pack", "PackLoading", "Rows", "Source", "TileChoice"]
