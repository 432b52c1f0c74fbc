"""Progressive training of Eagle 2.5 from one recipe: corpus, preparation, stages, evaluation, report.

`import eagle_train` is light: a name loads its module on first use, and only `Run` needs torch. The command line is
`eagle-train`; from Python it is `Run(load_recipe("my.yaml"), Display()).start()`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle_train.display import Display
    from eagle_train.errors import CheckpointError, Interrupted, RecipeError, RunError, TrainingError
    from eagle_train.pipeline import Run
    from eagle_train.recipe import Recipe, Stage
    from eagle_train.recipe_files import builtin_recipes, dump_recipe, load_recipe

__version__ = "0.1.0"

_MODULES = {
    "display": ("Display",),
    "errors": ("CheckpointError", "Interrupted", "RecipeError", "RunError", "TrainingError"),
    "pipeline": ("Run",),
    "recipe": ("Recipe", "Stage"),
    "recipe_files": ("builtin_recipes", "dump_recipe", "load_recipe"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CheckpointError",
    "Display",
    "Interrupted",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Stage",
    "TrainingError",
    "builtin_recipes",
    "dump_recipe",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
