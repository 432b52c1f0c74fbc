"""The command `eagle-data packs`, added to the command line of `cli`: what the packs of an epoch will be, from prepared files.

Promises the packs and their order that `StatefulLoader` gives for the same seed and ranks; nothing is decoded and nothing is
written. Not for loading them. Nothing but typer is imported before the arguments have been checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eagle_data.cli_media import fail

if TYPE_CHECKING:
    import numpy as np

    from eagle_data.pack_loading import Source
    from eagle_data.pack_stream import PackStream

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(packs)


def packs(
    prepared: Annotated[Path, typer.Argument(help="Folder that `eagle-data prepare` wrote.", show_default=False)],
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of a pack; one that was prepared.", show_default=False)],
    max_tiles: Annotated[int | None, typer.Option(min=1, help="Most tiles of a pack.", show_default="any number")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Data recipe, for repeat_time and weight; without it every sample comes once.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    ranks: Annotated[int, typer.Option(min=1, help="Packs of a step, one for each data-parallel rank.")] = 1,
    show: Annotated[int, typer.Option(min=0, help="How many of the first packs to list.")] = 3,
) -> None:
    """Say how the samples of an epoch fall into packs: how many, how full, how even, and what is in the first."""
    try:
        sources = _sources(prepared, context_length, recipe)
        for line in _lines(sources, context_length, max_tiles, seed, ranks, show):
            typer.echo(line)
    except (OSError, ValueError) as error:  # EagleDataError is a ValueError
        fail(error)


def _sources(prepared: Path, context_length: int, recipe: Path | None) -> list[Source]:
    """The datasets of a prepared folder, those of the recipe where one is given, with their repetitions."""
    from eagle_data.pack_loading import Source
    from eagle_data.prepared import PreparedDataset
    from eagle_data.recipe import load_data_recipe

    report = prepared / "report.json"
    if not report.is_file():
        raise FileNotFoundError(f"{report} does not exist; give the --out folder of a finished eagle-data prepare")
    names = dict.fromkeys(json.loads(report.read_text(encoding="utf-8")), 1.0)
    if recipe is not None:
        names = {name: entry.repeat_time * entry.weight for name, entry in load_data_recipe(recipe).items()}
    return [Source(PreparedDataset(prepared / name, context_length, name=name), repeat) for name, repeat in names.items()]


def _lines(sources: list[Source], context_length: int, max_tiles: int | None, seed: int, ranks: int, show: int) -> Iterator[str]:
    import numpy as np

    from eagle_data.pack_stream import PackStream, StreamPlan

    if not any(len(source.dataset) for source in sources):
        raise ValueError(f"no sample fits context length {context_length}; too_long.jsonl and rejects.jsonl say why")
    stream = PackStream(
        [source.dataset.lengths for source in sources],
        [source.dataset.tiles for source in sources],
        [source.repeat for source in sources],
        StreamPlan(context_length, max_tiles, seed, global_batch=ranks),
        names=[source.dataset.name for source in sources],
    )
    sizes, first = [], []
    for draws in _epoch(stream, ranks):
        members = stream.members(0, draws)
        lengths = np.array([sources[source].dataset.lengths[row] for source, row, _ in members])
        tiles = np.array([sources[source].dataset.tiles[row] for source, row, _ in members])
        sizes.append((len(members), int(lengths.sum()), int(tiles.sum()), float(stream.plan.cost.of(lengths, tiles).sum())))
        if len(first) < show:
            first.append([sources[source].dataset.where(row) for source, row, _ in members])
    samples, tokens, tiles, costs = (np.array(column) for column in zip(*sizes, strict=True))
    for source in sources:
        repeat = "" if source.repeat == 1 else f", {source.repeat:g} times an epoch"
        yield f"{source.dataset.name}: {len(source.dataset):,} samples{repeat}"
    yield (
        f"packs of an epoch: {len(sizes):,} of at most {context_length:,} tokens, "
        f"{100 * tokens.sum() / (len(sizes) * context_length):.1f} % full; samples: {samples.sum():,}, tokens: {tokens.sum():,}"
    )
    for what, values in (("samples", samples), ("tokens", tokens), ("tiles", tiles)):
        yield f"  {what} of a pack: {values.min():,} to {values.max():,}, {values.mean():,.1f} on average"
    if ranks > 1 and len(costs) >= ranks:
        yield (
            f"  balance of {len(costs) // ranks:,} steps of {ranks} packs: on average a rank works "
            f"{100 * _balance(costs, ranks):.1f} % of the slowest rank's time, by the 8B model's costs"
        )
    for number, members in enumerate(first):
        yield f"pack {number}: {tokens[number]:,} tokens, {tiles[number]:,} tiles, {samples[number]} samples"
        yield from (f"  {where}" for where in members)


def _epoch(stream: PackStream, ranks: int) -> Iterator[tuple[int, ...]]:
    """The draws of each pack of the first epoch, in the order in which all ranks together take them."""
    from eagle_data.pack_stream import Place

    place = Place(group=ranks)
    while place.epoch == 0:
        window = stream.window(place)
        yield from window.packs
        place = window.after


def _balance(costs: np.ndarray, ranks: int) -> float:
    """The mean cost of a step's packs over the largest, averaged over whole steps by their largest."""
    steps = costs[: len(costs) // ranks * ranks].reshape(-1, ranks)
    return float(steps.mean(axis=1).sum() / steps.max(axis=1).sum())
