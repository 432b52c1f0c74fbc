"""Data recipes: which annotation files are mixed, in upstream's JSON form (section 3.1).

`{name: {"root": …, "annotation": "x.jsonl", "repeat_time": 1, …}}`, as JSON or YAML. Relative paths are taken from
the recipe file's folder, or from the working directory where nothing lies there. Two names are no datasets: `model` and
`context_lengths` say what to prepare for. Training has its own recipe for both, so there they are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from eagle_data.strict import Strict, explain

if TYPE_CHECKING:
    from eagle_data.visual_plan import VisualRules


class DatasetEntry(Strict):
    """One dataset of a recipe.

    `annotation` is a file or folder that `annotation_files` reads, `root` is joined to its relative media paths. `repeat_time`
    may be fractional: 1.5 is every sample once and half of them, drawn anew each epoch, once more; `weight` multiplies it.
    `data_augment` re-encodes images as JPEG of quality 75-100, seeded per sample and epoch. `max_dynamic_tiles`,
    `min_dynamic_tiles`, `fps`, `min_frames` and `tile_pages` override the rules for this dataset.
    """

    annotation: Path
    root: Path = Path()
    repeat_time: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    data_augment: bool = False
    max_dynamic_tiles: int | None = Field(default=None, ge=1)
    min_dynamic_tiles: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0)
    min_frames: int | None = Field(default=None, ge=1)
    tile_pages: bool | None = None

    def rules(self, rules: VisualRules) -> VisualRules:
        """`rules` with what this dataset has otherwise."""
        own = {
            "max_tiles": self.max_dynamic_tiles,
            "min_tiles": self.min_dynamic_tiles,
            "fps": self.fps,
            "min_frames": self.min_frames,
            "tile_pages": self.tile_pages,
        }
        return replace(rules, **{name: value for name, value in own.items() if value is not None})

    @classmethod
    def ignores(cls, key: str) -> bool:
        """Upstream's informative keys: they describe, nothing reads them."""
        return key in {"length", "modality", "modility"} or key.endswith("description")


@dataclass(frozen=True)
class PrepareRecipe:
    """Datasets by name, and what they are prepared for: a checkpoint folder and lengths in tokens, where the recipe says them."""

    datasets: dict[str, DatasetEntry]
    model: Path | None = None
    context_lengths: tuple[int, ...] = ()


def load_data_recipe(path: str | Path) -> dict[str, DatasetEntry]:
    """The datasets of a recipe file; raises ValueError naming the file, the dataset and the key that is wrong."""
    return load_prepare_recipe(path).datasets


def load_prepare_recipe(path: str | Path) -> PrepareRecipe:
    """Read a recipe file with what to prepare for; raises ValueError as `load_data_recipe` does."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix in {".yaml", ".yml"}:
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: the recipe is not YAML ({error})") from error
    else:
        try:
            content = json.loads(text, object_pairs_hook=lambda pairs: _every_key_once(pairs, path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: the recipe is not JSON ({error.msg})") from error
    return _parse(content, base=path.parent, source=str(path))


def _parse(content: Any, *, base: Path, source: str) -> PrepareRecipe:
    """A decoded recipe with its paths resolved against `base`; `source` names it in errors."""
    target: dict[str, Any] = {}
    if isinstance(content, Mapping):
        target = {name: content[name] for name in ("model", "context_lengths") if name in content}
        content = {name: values for name, values in content.items() if name not in target}
    for name, value in target.items():
        if isinstance(value, Mapping):
            raise ValueError(f"{source}: {name!r} is no name for a dataset, since it says what to prepare for; choose another")
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source}: a data recipe is an object of datasets, {{name: {{root, annotation, …}}}}, and not empty")
    entries = {}
    for name, values in content.items():
        if not str(name) or {"..", "."} & set(Path(str(name)).parts) or Path(str(name)).is_absolute():
            raise ValueError(
                f"{source}: {name!r} cannot name a dataset: prepared files lie in a folder of that name; choose another"
            )
        try:
            entry = DatasetEntry.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{source}: dataset {name!r}: {explain(error)}") from error
        entries[str(name)] = entry.model_copy(
            update={"annotation": _resolve(base, entry.annotation), "root": _resolve(base, entry.root)}
        )
    return PrepareRecipe(entries, _model(target.get("model"), base, source), _lengths(target.get("context_lengths"), source))


def _model(value: Any, base: Path, source: str) -> Path | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{source}: model must be the path of a checkpoint folder, not {value!r}")
    return None if value is None else _resolve(base, Path(value))


def _lengths(value: Any, source: str) -> tuple[int, ...]:
    lengths = value if isinstance(value, list) else [] if value is None else [value]
    if (value is not None and not lengths) or not all(type(length) is int and length >= 1 for length in lengths):
        raise ValueError(f"{source}: context_lengths must be numbers of tokens from 1, as in [32768, 131072], not {value!r}")
    return tuple(dict.fromkeys(lengths))


def _every_key_once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object; plain parsing would let a second dataset of the same name replace the first without a word."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{path}: the key {twice!r} is written twice in one object; rename or remove one")
    return content


def _resolve(base: Path, path: Path) -> Path:
    beside = base / path
    return path if not beside.exists() and path.exists() else beside
