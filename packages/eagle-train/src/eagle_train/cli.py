"""The command line: `eagle-train` runs the quick start, `run` any recipe, `recipes` and `show` explain them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as seed=1 or stages.long.lr=1e-4.", show_default=False)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, removing what the run folder holds.")]


@app.callback(invoke_without_command=True)
def quickstart(context: typer.Context, fresh: Fresh = False) -> None:
    """Train Eagle 2.5. Without a command: the quick start, a toy model on two CPU cores, no network needed."""
    if context.invoked_subcommand is None:
        _run("quickstart", [], fresh)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a YAML file.")], overrides: Overrides = None, fresh: Fresh = False
) -> None:
    """Run a recipe, or go on with it where it was interrupted."""
    _run(recipe, overrides or [], fresh)


@app.command()
def recipes() -> None:
    """List the built-in recipes."""
    from eagle_train.recipe_files import builtin_recipes

    names = builtin_recipes()
    width = max(map(len, names))
    for name, description in names.items():
        typer.echo(f"{name:<{width}}  {description}")


@app.command()
def show(recipe: Annotated[str, typer.Argument(help="A built-in recipe's name or a YAML file.")], overrides: Overrides = None) -> None:
    """Print a recipe with everything resolved: inheritance, overrides and defaults."""
    from eagle_train.recipe_files import RecipeError, dump_recipe, load_recipe

    try:
        typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)
    except RecipeError as error:
        _fail(str(error))


def _run(name: str, overrides: list[str], fresh: bool) -> None:
    from eagle_train.recipe_files import RecipeError, load_recipe

    try:
        recipe = load_recipe(name, overrides)
    except RecipeError as error:
        _fail(str(error))
    from rich.console import Console
    from rich.markup import escape

    from eagle_train.display import Display
    from eagle_train.pipeline import Run
    from eagle_train.training import Interrupted

    display = Display(Console())
    job = Run(recipe, display)
    display.say(f"[bold]{recipe.name}[/]  [dim]{escape(recipe.description)}[/]")
    try:
        if not job.open(fresh=fresh):
            report = job.folder / "report.html"
            display.say(f"This run is finished: see [cyan]{report}[/], or start it over with [bold]--fresh[/].")
            return
        job.execute()
    except Interrupted:
        display.say("\n[yellow]Stopped.[/] Everything so far is saved; the same command goes on from here.")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        display.say("\n[yellow]Stopped.[/] The same command goes on from the last finished phase or checkpoint.")
        raise typer.Exit(130) from None
    except (RecipeError, FileNotFoundError, ValueError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(2)


def main() -> None:
    """Entry point of `eagle-train`."""
    app()


__all__ = ["app", "main"]
