"""The command line: `eagle-data prepare` makes a dataset ready for training; `packs` is `cli_packs`, the commands on
media are `cli_media`, `curate` is `curate.command`.

Results go to stdout, progress and errors to stderr. Exit code 2 means that what was asked cannot be: a missing file,
broken media, a wrong recipe. Media and parquet libraries are imported only after the arguments have been checked.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eagle_data import cli_media, cli_packs
from eagle_data.curate import command as curate_command

if TYPE_CHECKING:
    from eagle_data.fetch import Fetch

_CONTEXT_LENGTH = 32768

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def commands() -> None:
    """From recipes of images and videos to packed token batches."""


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="Data recipe, JSON or YAML.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the prepared files.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint folder with config.json and tokenizer.json. [default: model of the recipe]", show_default=False
        ),
    ] = None,
    context_length: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Tokens that a sample may have; repeat it for several stages. "
            f"[default: context_lengths of the recipe, or {_CONTEXT_LENGTH}]",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames wished per second of video.")] = 2.0,
    min_frames: Annotated[
        int, typer.Option(min=1, help="Fewest frames of a video; without room for them a sample is rejected.")
    ] = 8,
    dialect: Annotated[str, typer.Option(help="Wording around pictures: released or training.")] = "released",
    verify: Annotated[bool, typer.Option("--verify", help="Also decode every picture once.")] = False,
    engine: Annotated[
        str, typer.Option(help="local (processes of this machine) or ray (Ray Data; a cluster by RAY_ADDRESS).")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes or Ray actors; 0 works in this one. [default: one a core]", show_default=False),
    ] = None,
    page: Annotated[bool, typer.Option(help="Write report.html with distributions and sample pictures.")] = True,
    fetch: cli_media.FetchThem = False,
    fetch_host: cli_media.FetchFrom = None,
    fetch_mib: cli_media.FetchLimit = 256,
) -> None:
    """Plan and tokenise every sample of a recipe, for each context length. What has not changed is not redone."""
    try:
        given = cli_media.leave(fetch, fetch_host, fetch_mib)
        _prepare(recipe, out, model, context_length, fps, min_frames, dialect, verify, given, engine, workers, page)
    except (OSError, ValueError) as error:  # EagleDataError is a ValueError
        cli_media.fail(error)


cli_packs.add_to(app)
cli_media.add_to(app)
curate_command.add_to(app)


def main() -> None:
    """The entry point `eagle-data`."""
    app()


def _prepare(
    recipe: Path,
    out: Path,
    model: Path | None,
    context_lengths: list[int] | None,
    fps: float,
    min_frames: int,
    dialect: str,
    verify: bool,
    fetch: Fetch | None,
    engine: str,
    workers: int | None,
    page: bool,
) -> None:
    from eagle_data.annotation_files import count_records
    from eagle_data.checkpoint_rules import rules_of_checkpoint
    from eagle_data.dialect import get_dialect
    from eagle_data.prepare import prepare as prepare_datasets
    from eagle_data.prepare_counts import summary
    from eagle_data.prepare_progress import ProgressLine
    from eagle_data.recipe import load_prepare_recipe
    from eagle_data.tokens import PromptTokenizer

    read = load_prepare_recipe(recipe)
    datasets, model = read.datasets, model or read.model
    if model is None:
        raise ValueError(
            f"{recipe} names no checkpoint folder; write model: FOLDER into it, or pass --model FOLDER "
            "(its config.json and tokenizer.json are needed)"
        )
    lengths = list(dict.fromkeys(context_lengths or read.context_lengths or (_CONTEXT_LENGTH,)))
    rules = rules_of_checkpoint(model, fps=fps, min_frames=min_frames, dialect=get_dialect(dialect))
    shown = sys.stderr.isatty()
    counted = {name for name, entry in datasets.items() if shown and entry.annotation.exists()}
    totals = {name: count_records(entry.annotation) if name in counted else None for name, entry in datasets.items()}
    line = ProgressLine(sys.stderr, totals)
    if workers is None:
        workers = 0 if engine == "ray" else len(os.sched_getaffinity(0))
    try:
        reports = prepare_datasets(
            datasets,
            out,
            context_lengths=dict.fromkeys(datasets, lengths),
            rules=rules,
            tokenizer=PromptTokenizer.from_folder(model),
            verify=verify,
            fetch=fetch,
            progress=line if shown else None,
            engine=engine,
            workers=workers,
        )
    finally:
        line.close()
    for name, report in reports.items():
        typer.echo(f"{name}: {report.read} read, {report.prepared} prepared, {report.rejected} rejected")
        for n in report.degraded:
            typer.echo(f"  {summary(report, n)}")
        for reason, count in report.reasons.items():
            typer.echo(f"  rejected, {reason}: {count}")
    if len(reports) > 1:
        counts = [f"{sum(getattr(r, part) for r in reports.values())} {part}" for part in ("read", "prepared", "rejected")]
        typer.echo(f"all {len(reports)} datasets: {', '.join(counts)}")
        reasons = sum((Counter(report.reasons) for report in reports.values()), Counter[str]())
        for reason, count in reasons.most_common():
            typer.echo(f"  rejected, {reason}: {count}")
    if page:
        from eagle_data.prepare_page import write_page

        typer.echo(f"{write_page(out, reports, fetch=fetch)} shows distributions and samples", err=True)
    if any(report.rejected for report in reports.values()):
        typer.echo(f"{out / 'rejects.jsonl'} says where and why", err=True)
