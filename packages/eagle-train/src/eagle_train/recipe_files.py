"""Recipe files: built-in recipes, `base:` inheritance, `key=value` overrides, and readable errors.

A file may start from another with `base: <built-in name or file beside it>`; mappings are merged key by key, lists
and values replaced. Overrides address a value by its dotted path, list items by name or number: `stages.long.lr=1e-4`.
Relative paths are taken from the folder of the file that holds them, those of an override from the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eagle_train.errors import RecipeError
from eagle_train.recipe import Recipe

_MODEL = ("model", "path")
_PATHS = (
    _MODEL,
    ("data", "recipe"),
    ("data", "datasets", "*", "annotation"),
    ("data", "datasets", "*", "root"),
    ("evaluation", "root"),
    ("evaluation", "sets", "*"),
)
"""Keys that hold paths; `*` is any name."""

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def builtin_recipes() -> dict[str, str]:
    """Names of the built-in recipes and their one-line descriptions."""
    found = {}
    for entry in sorted(resources.files("eagle_train").joinpath("recipes").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = str(yaml.safe_load(entry.read_text())["description"])
    return found


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A built-in recipe by name or a YAML file by path, with overrides applied and everything validated.

    Paths come out absolute, so that the recipe means the same in every working directory; those of a built-in recipe
    are taken from the present one. Raises RecipeError.
    """
    source, values, folder = _read(name_or_path, Path(), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"override {override!r} is not key=value (for example seed=1 or stages.0.lr=1e-4)")
        try:
            value = _numbers(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise RecipeError(f"the value of override {override!r} is not YAML: {error}") from error
        _assign(values, key, _anchored(value, Path(), tuple(key.split("."))))
    if folder is not None:
        _default_roots(values, folder)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe(error)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML; it loads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120)


def describe(error: ValidationError) -> str:
    """The errors of a validation, one per line: dotted key, then what is wrong."""
    lines = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return "\n  ".join(lines)


def _read(name_or_path: str, beside: Path, chain: tuple[str, ...]) -> tuple[str, dict[str, Any], Path | None]:
    """Source name, merged values and folder (None for a built-in) of a recipe."""
    known = builtin_recipes()
    folder: Path | None = None
    path = beside / name_or_path
    identity = name_or_path if name_or_path in known else str(path.resolve())
    if identity in chain:
        raise RecipeError(f"recipes inherit in a circle: {' -> '.join((*chain, identity))}")
    if name_or_path in known:
        text = resources.files("eagle_train").joinpath("recipes").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        if not path.is_file():
            near = difflib.get_close_matches(name_or_path, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"built-in recipes are {', '.join(known)}"
            raise RecipeError(f"there is no recipe {name_or_path!r}: not a file, not built in; {hint}")
        try:
            text, folder = path.read_text(encoding="utf-8"), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name_or_path} must hold a mapping of recipe keys, not {type(values).__name__}")
    base = values.pop("base", None)
    values = _anchored(_numbers(values), folder or Path())
    if base is not None:
        _, inherited, _ = _read(str(base), folder or Path(), (*chain, identity))
        values = _merge(inherited, values)
    return name_or_path, values, folder


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = deepcopy(base)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _assign(values: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place = values
    for part in parents:
        if isinstance(place, list):
            place = place[_index(place, part, key)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, (dict, list)):
            raise RecipeError(f"override {key!r}: {part!r} is a value, it has no keys of its own")
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _index(place: list[Any], part: str, key: str) -> int:
    for number, item in enumerate(place):
        if isinstance(item, dict) and item.get("name") == part:
            return number
    if part.isdigit() and int(part) < len(place):
        return int(part)
    names = ", ".join(
        str(item.get("name", number)) if isinstance(item, dict) else str(number) for number, item in enumerate(place)
    )
    raise RecipeError(f"override {key!r}: {part!r} is not an item of the list; its items are {names}")


def _numbers(value: Any) -> Any:
    """`1e-4` is a string to YAML 1.1 (it wants `1.0e-4`) but a number to everyone who writes it."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _anchored(value: Any, folder: Path, at: tuple[str, ...] = ()) -> Any:
    """`value`, which stands at the key `at`, with the paths in it taken from `folder` and made absolute."""
    if isinstance(value, dict):
        return {key: _anchored(item, folder, (*at, str(key))) for key, item in value.items()}
    if isinstance(value, str) and any(_matches(at, key) for key in _PATHS):
        return _absolute(value, folder, hub_name=at == _MODEL)
    return value


def _matches(at: tuple[str, ...], key: tuple[str, ...]) -> bool:
    return len(at) == len(key) and all(part in ("*", own) for own, part in zip(at, key, strict=True))


def _absolute(text: str, folder: Path, *, hub_name: bool) -> str:
    """The path beside the file; else in the working directory, if it is there; a model's name on a hub stays a name."""
    path = Path(text).expanduser()
    beside = folder / path
    for candidate in (beside, path):
        if candidate.exists():
            return os.path.abspath(candidate)
    return text if hub_name else os.path.abspath(beside)


def _default_roots(values: dict[str, Any], folder: Path) -> None:
    """Media without a `root` lie in the recipe's folder."""
    data, evaluation = values.get("data"), values.get("evaluation")
    datasets = data.get("datasets") if isinstance(data, dict) else None
    entries = list(datasets.values()) if isinstance(datasets, dict) else []
    if isinstance(evaluation, dict) and evaluation.get("sets"):
        entries.append(evaluation)
    for entry in entries:
        if isinstance(entry, dict):
            entry.setdefault("root", os.path.abspath(folder))


__all__ = ["RecipeError", "builtin_recipes", "describe", "dump_recipe", "load_recipe"]
