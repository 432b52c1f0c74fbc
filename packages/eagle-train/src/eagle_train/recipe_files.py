"""Recipe files: built-in recipes, `base:` inheritance, `key=value` overrides, and readable errors.

A file may start from another with `base: <built-in name or file beside it>`; mappings are merged key by key, lists
and values replaced. Overrides address a value by its dotted path, with list items by number: `stages.0.lr=1e-4`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eagle_train.recipe import Recipe


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the key and the mend."""


def builtin_recipes() -> dict[str, str]:
    """Names of the built-in recipes and their one-line descriptions."""
    found = {}
    for entry in sorted(resources.files("eagle_train").joinpath("recipes").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = str(yaml.safe_load(entry.read_text())["description"])
    return found


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A built-in recipe by name or a YAML file by path, with overrides applied and everything validated.

    Paths inside a file are taken from the file's folder. Raises RecipeError.
    """
    source, values, folder = _read(name_or_path, Path(), ())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"override {override!r} is not key=value (for example seed=1 or stages.0.lr=1e-4)")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"the value of override {override!r} is not YAML: {error}") from error
        if isinstance(value, str):
            value = _number(value)
        _assign(values, key, value)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe(error)}") from error
    return recipe if folder is None else _anchored(recipe, folder)


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
    if name_or_path in chain:
        raise RecipeError(f"recipes inherit in a circle: {' -> '.join((*chain, name_or_path))}")
    known = builtin_recipes()
    folder: Path | None = None
    if name_or_path in known:
        text = resources.files("eagle_train").joinpath("recipes", f"{name_or_path}.yaml").read_text()
    else:
        path = beside / name_or_path
        if not path.is_file():
            near = difflib.get_close_matches(name_or_path, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"built-in recipes are {', '.join(known)}"
            raise RecipeError(f"there is no recipe {name_or_path!r}: not a file, not built in; {hint}")
        text, folder = path.read_text(), path.parent
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name_or_path} must hold a mapping of recipe keys, not {type(values).__name__}")
    base = values.pop("base", None)
    if base is not None:
        _, inherited, _ = _read(str(base), folder or Path(), (*chain, name_or_path))
        values = _merge(inherited, values)
    return name_or_path, _numbers(values), folder


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
    names = ", ".join(str(item.get("name", number)) if isinstance(item, dict) else str(number) for number, item in enumerate(place))
    raise RecipeError(f"override {key!r}: {part!r} is not an item of the list; its items are {names}")


def _number(text: str) -> Any:
    """`1e-4` is a string to YAML 1.1 (it wants `1.0e-4`) but a number to everyone who writes it."""
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _number(value) if isinstance(value, str) and value[:1].isdigit() else value


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """Relative paths of a recipe file, taken from its folder where they exist there."""

    def anchor(path: Path) -> Path:
        beside = folder / path
        return beside if beside.exists() else path

    data = recipe.data
    if data.recipe is not None:
        data = data.model_copy(update={"recipe": anchor(data.recipe)})
    datasets = {
        name: entry.model_copy(update={"annotation": anchor(entry.annotation), "root": anchor(entry.root)})
        for name, entry in data.datasets.items()
    }
    evaluation = recipe.evaluation.model_copy(
        update={
            "sets": {task: anchor(path) for task, path in recipe.evaluation.sets.items()},
            "root": anchor(recipe.evaluation.root),
        }
    )
    return recipe.model_copy(update={"data": data.model_copy(update={"datasets": datasets}), "evaluation": evaluation})
