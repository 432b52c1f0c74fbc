"""The command line: `eagle-train` runs the quick start, `run` any recipe, `recipes` and `show` explain them.

Exit code 2 means that what was asked cannot be, with one message on stderr; 130 that the user stopped it. torch is
imported only once a recipe is known to be good.
"""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A built-in recipe's name or a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides such as seed=1 or stages.long.lr=1e-4.", show_default=False),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over, removing what an earlier run left in the run folder.")]


@app.callback(invoke_without_command=True)
def quickstart(context: typer.Context, fresh: Fresh = False) -> None:
    """Train Eagle 2.5. Without a command: the quick start, a toy model on two CPU cores, no network needed."""
    if context.invoked_subcommand is None:
        _run("quickstart", [], fresh)
    elif fresh:
        _fail(f"--fresh belongs behind the command: eagle-train {context.invoked_subcommand} … --fresh")


@app.command()
def run(recipe: RecipeName, overrides: Overrides = None, fresh: Fresh = False) -> None:
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
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe with everything resolved: inheritance, overrides and defaults."""
    from eagle_train.recipe_files import RecipeError, dump_recipe, load_recipe

    try:
        typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)
    except RecipeError as error:
        _fail(str(error))


def _run(name: str, overrides: list[str], fresh: bool) -> None:
    from rich.console import Console
    from rich.markup import escape

    from eagle_train.display import Display
    from eagle_train.errors import Interrupted, RecipeError, RunError
    from eagle_train.launch import launch, starts_ranks
    from eagle_train.preflight import check
    from eagle_train.recipe_files import load_recipe

    display = Display(Console(quiet=os.environ.get("RANK", "0") != "0"))  # under torchrun the first rank speaks for all
    try:
        recipe = load_recipe(name, overrides)
        check(recipe)
        display.say(f"[bold]{escape(recipe.name)}[/]  [dim]{escape(recipe.description)}[/]")

        # Read when torch is loaded. Threads that spin long while they wait slow a run down several times on cores that other
        # programs use; a short spin costs nothing on idle ones (13 ms a toy step as by default; never spinning: 27 ms).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        if starts_ranks(recipe):
            todo = launch(recipe, fresh=fresh)
        else:
            from eagle_train.pipeline import Run

            todo = Run(recipe, display).start(fresh=fresh)
        if not todo:
            page = escape(str(recipe.folder / "report.html"))
            display.say(f"This run is finished: see [cyan]{page}[/], or start it over with [bold]--fresh[/].")
    except Interrupted:
        display.say("\n[yellow]Stopped.[/] Everything so far is saved; the same command goes on from here.")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        display.say("\n[yellow]Stopped.[/] The same command goes on from the last finished phase or checkpoint.")
        raise typer.Exit(130) from None
    except RecipeError as error:
        _fail(str(error))
    except RunError as error:
        _fail(str(error), code=1)


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of `eagle-train`."""
    app()


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
