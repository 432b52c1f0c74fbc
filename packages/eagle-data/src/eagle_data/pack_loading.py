"""Loading one pack: rows to samples with pixels, and what is done about media that cannot be read.

Each file is tried once per pack and never again; what failed is in the pack's `failures`. A sample that cannot be read is
replaced, so that no pack comes out empty and ranks stay in step; the stand-in follows from seed, epoch and draw, so every rank
and worker chooses alike. Not for choosing what is in a pack.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np

from eagle_data.collate import LoadedSample
from eagle_data.encode import WITHHELD, Encoded
from eagle_data.epoch_order import permuted
from eagle_data.errors import EagleDataError
from eagle_data.media_index import PreparedMedia
from eagle_data.units import load_units

TileChoice: TypeAlias = Callable[[Sequence[Encoded]], Callable[[int], bool]]
"""From the samples of a pack, in order, to a predicate: whether to load a tile or frame, counted over the pack."""

BadMedia: TypeAlias = Literal["substitute", "blank", "leave_out"]
"""Take another sample of its source, or blank it where none is found that fits in its room; blank: keep its tokens with zero
pixels and nothing supervised; leave it out, which may leave a pack empty."""

_STAND_INS_TRIED = 3
_STAND_INS_LOOKED_AT = 64


class Rows(Protocol):
    """What a loader needs of a dataset, as `PreparedDataset` has it; rows may be read from several threads at once.

    It may also have `digest`, a string that changes when its rows do (see `content_digest`).
    """

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
    """A prepared dataset and how it is mixed: `repeat` (fractional allowed) passes per epoch, augmentation or not.

    Raises ValueError for a repeat that is negative or not finite.
    """

    dataset: Rows
    repeat: float = 1.0
    augment: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.repeat) and self.repeat >= 0):
            raise ValueError(
                f"source {self.dataset.name!r}: repeat {self.repeat} is no number of passes; "
                "give a finite one that is not negative"
            )


def content_digest(dataset: Rows) -> str:
    """What changes when the rows of `dataset` do, without reading them: its `digest`, else the key of its preparation
    (`done.json` beside its samples), else nothing."""
    digest = getattr(dataset, "digest", None)
    if digest is not None:
        return str(digest)
    folder = getattr(dataset, "path", None)
    try:
        return str(json.loads((folder.parent / "done.json").read_text(encoding="utf-8"))["key"]) if folder else ""
    except (OSError, ValueError, KeyError):
        return ""


@dataclass(frozen=True)
class Pack:
    """The samples of one pack with their pixels, and what could not be loaded as `(where, reason)`.

    `position` counts packs over the whole stream. `stand_ins` are `(where, where)`: the sample that could not be read
    and the one that took its place, `blanks` the `where` of those that stayed with zero pixels and nothing supervised. Where the
    loader has a `load`, `pixels` of a sample are the chosen tiles only.
    """

    samples: tuple[LoadedSample, ...]
    failures: tuple[tuple[str, str], ...]
    epoch: int
    position: int = 0
    stand_ins: tuple[tuple[str, str], ...] = ()
    blanks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackLoading:
    """Loads packs of `sources`. `load` chooses the tiles to decode, all of them when None. Raises ValueError for another
    `bad_media`."""

    sources: tuple[Source, ...]
    tile_size: int
    use_thumbnail: bool
    seed: int
    bad_media: BadMedia = "substitute"
    load: TileChoice | None = None

    def __post_init__(self) -> None:
        if self.bad_media not in get_args(BadMedia):
            raise ValueError(f"there is no bad_media {self.bad_media!r}; use {', '.join(get_args(BadMedia))}")

    def __call__(self, epoch: int, position: int, members: Sequence[tuple[int, int, int]]) -> Pack:
        """The pack of `members`, each `(source, row, copy)`.

        With `load`, a sample that cannot be read stays, with zeros for its tiles, since ranks that do not read it have it as
        well; whoever gives `load` tells the other ranks of the failures.
        """
        samples, failures, stand_ins, blanks, first = [], [], [], [], 0
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
                elif self.bad_media == "substitute" and (found := self._stand_in(epoch, member)) is not None:
                    samples.append(found)
                    stand_ins.append((where, found.where))
                elif self.bad_media != "leave_out":
                    zeros = np.zeros((encoded.tiles, 3, self.tile_size, self.tile_size), dtype=np.float32)
                    samples.append(LoadedSample(encoded.input_ids, np.full_like(encoded.labels, WITHHELD), zeros, where))
                    blanks.append(where)
        return Pack(tuple(samples), tuple(failures), epoch, position, tuple(stand_ins), tuple(blanks))

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


__all__ = ["BadMedia", "Pack", "PackLoading", "Rows", "Source", "TileChoice", "content_digest"]
