"""The command `eagle-data curate`, added to the command line of `cli`.

Results go to stdout, progress and errors to stderr. Exit code 2 means that what was asked cannot be, 1 that the run stopped
early and the same command goes on. Nothing but typer is imported before the arguments have been checked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eagle_data.curate.collect import Selection
    from eagle_data.curate.estimate import Estimate

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(curate)


def curate(
    recipe: Annotated[Path, typer.Argument(help="Recipe, YAML: videos, clips, diversity, endpoint.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier run there is gone on with.", show_default=False)],
    estimate: Annotated[bool, typer.Option("--estimate", help="Choose clips, say what asking costs, ask nothing.")] = False,
) -> None:
    """Choose clips unlike what you have, and let a model caption and question them."""
    from eagle_data.curate.pipeline import curate as run
    from eagle_data.curate.recipe import load_curate_recipe

    try:
        report = run(
            load_curate_recipe(recipe),
            out,
            ask=not estimate,
            progress=_show_progress if sys.stderr.isatty() else None,
            announce=_announce,
        )
    except (OSError, ValueError) as error:  # EagleDataError is a ValueError
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if report.captioned or report.stories:
        typer.echo(f"captioned: {report.captioned} clips, {report.stories} whole videos")
        typer.echo("questions: " + ", ".join(f"{count} in {name}.jsonl" for name, count in report.questions.items()))
        typer.echo(f"spent: {report.input_tokens:,} tokens in, {report.output_tokens:,} out, cost {report.cost:.2f}")
    typer.echo(f"page: {out / 'review.html'}")
    if report.rejected:
        typer.echo(f"{report.rejected} left out: {out / 'rejects.jsonl'} says which and why", err=True)
    if report.stopped and not estimate:
        typer.echo(f"stopped with {report.missing} not asked yet: {report.stopped}", err=True)
        typer.echo("nothing is lost: the same command goes on", err=True)
        raise typer.Exit(1)


def _announce(selection: Selection, planned: Estimate | None) -> None:
    typer.echo(f"clips: {len(selection.kept)} kept of {len(selection.clips)}, compared with {selection.existing}")
    if planned is not None:
        typer.echo(str(planned))


def _show_progress(step: str, done: int, total: int) -> None:
    typer.echo(f"\r{step}: {done} of {total}\x1b[K", nl=done == total, err=True)
