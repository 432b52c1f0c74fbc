"""Loaders over datasets that a test wrote, and what comes out of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from eagle_data.loader import Pack, Source, StatefulLoader
from eagle_data.prepared import PreparedDataset

CONTEXT = 32


def loader(folder: Path, *names: str, repeat: float = 1.0, augment: bool = False, **options: Any) -> StatefulLoader:
    sources = [Source(PreparedDataset(folder / name, CONTEXT), repeat, augment) for name in names or ("text", "mixed")]
    return StatefulLoader(sources, **{"context_length": CONTEXT, "tile_size": 8, "seed": 5, "workers": 0, **options})


def names(packs: list[Pack]) -> list[list[str]]:
    return [[sample.where for sample in pack.samples] for pack in packs]


def take(source: StatefulLoader, count: int) -> list[Pack]:
    return list(islice(iter(source), count))


def epoch(source: StatefulLoader, number: int = 0) -> list[Pack]:
    return take(source, len(source.epoch_packs(number)))
