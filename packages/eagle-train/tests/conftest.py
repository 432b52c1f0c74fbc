"""What several tests share: a toy checkpoint, a few real media files, and a quick recipe for whole runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eagle_train import Display, Run, load_recipe
from eagle_train.digits import DigitsCorpus, write_clip
from eagle_train.recipe import Recipe
from eagle_train.toy_model import ToyModel, build_toy
from PIL import Image
from rich.console import Console

TOY = ToyModel(
    vision_layers=1,
    vision_hidden=32,
    vision_heads=2,
    vision_mlp=64,
    layers=1,
    hidden=32,
    heads=2,
    kv_heads=2,
    mlp=64,
    vocabulary=400,
    initializer_range=0.08,
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved toy checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    torch.manual_seed(0)
    build_toy(TOY, ["What colour is the picture?", "red green blue", "Frame 1 sample at 0.00s: "] * 20, folder)
    return folder


@pytest.fixture(scope="session")
def load_toy(toy_folder: Path) -> Callable[[], Any]:
    """A fresh copy of the toy model at every call."""
    from eagle_model import Eagle2_5_VLForConditionalGeneration

    return lambda: Eagle2_5_VLForConditionalGeneration.from_pretrained(toy_folder, attn_implementation="packed_sdpa")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with `red.png` (one tile), `wide.jpg` (several) and `clip.mp4` (4 s)."""
    folder = tmp_path / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    Image.fromarray(rng.integers(0, 256, (32, 96, 3), dtype=np.uint8)).save(folder / "wide.jpg")
    write_clip(folder / "clip.mp4", [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(32)], fps=8)
    return folder


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSONL file from records, or from strings as they are."""

    def write(lines: Sequence[Any], name: str = "train.jsonl") -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def talk() -> Callable[..., dict[str, Any]]:
    """A one-turn record: `talk(question, answer, image=…)`."""

    def record(question: str, answer: str = "Red.", **keys: Any) -> dict[str, Any]:
        return {**keys, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}

    return record


@pytest.fixture(scope="session")
def quick_overrides() -> list[str]:
    """What makes `smoke` a matter of seconds: a handful of samples, a smaller toy, three steps a stage."""
    counts = {name: 6 for name, field in DigitsCorpus.model_fields.items() if field.default >= 100}
    overrides = [f"data.corpus.{name}={count}" for name, count in counts.items()]
    overrides += [f"model.toy.{name}={value}" for name, value in TOY.model_dump(exclude_defaults=True).items()]
    stages = load_recipe("smoke")
    overrides += [f"stages.{stage.name}.steps=3" for stage in stages.stages]
    overrides += [f"pretraining.{stage.name}.steps=3" for stage in stages.pretraining]
    return [*overrides, "tower_pretraining.steps=4", "checkpoints.every_steps=2", "evaluation.batch=4", "engine.threads=1"]


@pytest.fixture(scope="session")
def quick_recipe(quick_overrides: list[str]) -> Callable[..., Recipe]:
    """The quick recipe with a run folder and further overrides."""
    return lambda folder, *overrides: load_recipe("smoke", [*quick_overrides, f"run_dir={folder}", *overrides])


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Start a recipe in this process and return what it printed."""

    def start(recipe: Recipe, **options: bool) -> str:
        output = io.StringIO()
        Run(recipe, Display(Console(file=output))).start(**options)
        return output.getvalue()

    return start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, quick_recipe: Callable[..., Recipe], run: Callable[..., str]) -> Path:
    """The folder of a quick run that was never interrupted; tests only read it."""
    folder = tmp_path_factory.mktemp("a run") / "reference"
    (folder.parent / "output.txt").write_text(run(quick_recipe(folder)))
    return folder


@pytest.fixture(scope="session")
def stable() -> Callable[[Path], dict[str, Any]]:
    """The report of a run without the two figures that may differ between equal runs."""

    def read(folder: Path) -> dict[str, Any]:
        report = json.loads((folder / "report.json").read_text())
        assert report.pop("seconds") > 0
        assert report.pop("peak_rss_gib") > 0
        return report

    return read
