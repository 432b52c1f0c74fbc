"""Data recipes: which annotation files are mixed, in upstream's JSON form (section 3.1).

`{name: {"root": …, "annotation": "x.jsonl", "repeat_time": 1, …}}`, as JSON or YAML. Relative paths are taken from
the recipe file's folder, or from the working directory where nothing lies there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
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
    repeat_time: float = Field(default=1.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
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


def load_data_recipe(path: str | Path) -> dict[str, DatasetEntry]:
    """Read a recipe file; raises ValueError naming the file, the dataset and the key that is wrong."""
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
    return parse_data_recipe(content, base=path.parent, source=str(path))


def parse_data_recipe(content: Any, *, base: Path, source: str) -> dict[str, DatasetEntry]:
    """A decoded recipe with its paths resolved against `base`; `source` names it in errors."""
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
    return entries


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
