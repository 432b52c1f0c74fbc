"""Embedders: what `layout` promises of copies and strangers, pooling, and how a recipe names one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eagle_data.curate.clips import frames_of
from eagle_data.curate.embedding import Layout, load_embedder, pooled
from eagle_data.errors import EagleDataError
from eagle_data.video import open_video

from .scene_files import copy_real, scene, write_scenes


def embedded(path: Path, second: float) -> np.ndarray:
    with open_video(path) as video:
        return pooled(Layout()(frames_of(video, [second], (32, 32))))


def test_copies_lie_near_one_and_strangers_below_half():
    layout = Layout()
    pictures = np.stack([scene(seed, 3, (32, 32)) for seed in range(40)])
    vectors = layout(pictures)
    assert vectors.shape == (40, 224)
    vectors = np.stack([pooled(vector[None]) for vector in vectors])
    cosines = vectors @ vectors.T
    strangers = cosines[~np.eye(40, dtype=bool)]
    assert strangers.max() < 0.5
    changed = np.clip(pictures.astype(np.int16) * 0.8 + 10, 0, 255).astype(np.uint8)
    copies = np.stack([pooled(vector[None]) for vector in layout(changed)])
    assert (vectors * copies).sum(axis=1).min() > 0.95


def test_real_films_differ_and_a_damaged_copy_does_not(tmp_path: Path):
    folder = copy_real(tmp_path)
    bikes, bunny = embedded(folder / "bikes.mp4", 1), embedded(folder / "bigbuckbunny.mp4", 1)
    phone, worse = embedded(folder / "carphone_pristine.mp4", 1), embedded(folder / "carphone_distorted.mp4", 1)
    assert phone @ worse > 0.9
    assert max(bikes @ bunny, bikes @ phone, bunny @ phone) < 0.5


def test_rescaled_and_reencoded_films_are_found(tmp_path: Path):
    first = embedded(write_scenes(tmp_path / "a.mp4", [5]), 1)
    again = embedded(write_scenes(tmp_path / "b.mp4", [5], size=(320, 240), crf=38, dim=20), 1)
    assert first @ again > 0.95


def test_pooling_is_the_mean_of_unit_vectors():
    assert pooled(np.array([[2.0, 0], [0, 8.0]])) == pytest.approx([0.5**0.5, 0.5**0.5])
    with pytest.raises(EagleDataError, match="plain colour"):
        pooled(Layout()(np.full((2, 32, 32, 3), 17, np.uint8)))
    with pytest.raises(EagleDataError, match="not finite"):
        pooled(np.array([[np.nan, 1]]))


class Own:
    """An embedder of one's own."""

    def __init__(self, scale: float) -> None:
        self.name = f"own-{scale}"

    def picture_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return frames.mean(axis=(1, 2))


def test_a_recipe_names_an_embedder(monkeypatch: pytest.MonkeyPatch):
    module = type(sys)("my_embedders")
    module.Own = Own  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "my_embedders", module)
    assert load_embedder("my_embedders:Own", {"scale": 2.0}).name == "own-2.0"
    for text, options, words in (
        ("layuot", {}, "write layout, transformers"),
        ("no_such_module:X", {}, "cannot be imported"),
        ("my_embedders:Other", {}, "cannot be imported"),
        ("my_embedders:Own", {"size": 1}, "does not take the options"),
        ("pathlib:Path", {}, "gives no embedder"),
    ):
        with pytest.raises(EagleDataError, match=words):
            load_embedder(text, options)


def test_no_step_imports_torch_unless_the_recipe_chooses_it():
    code = (
        "import sys, eagle_data.curate.pipeline, eagle_data.curate.command\n"
        "print([name for name in ('torch', 'transformers', 'jinja2', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
