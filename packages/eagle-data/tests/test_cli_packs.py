"""`eagle-data packs` tells of the packs that the loader gives, in its order, from what `eagle-data prepare` wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.cli import app
from eagle_data.cli_packs import _balance
from eagle_data.loader import StatefulLoader
from eagle_data.pack_loading import Source
from eagle_data.prepared import PreparedDataset
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from .corpus_files import talk

LENGTH = 200


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Forty talks of different lengths, five of them in a dataset of their own that comes twice; one fits no context."""
    lines = [json.dumps(talk("Say it", "It is said. " * (1 + number % 7))) for number in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:35]))
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[35:], json.dumps(talk("All", "all of it " * 200))]))
    content = {"first": {"annotation": "a.jsonl"}, "second/part": {"annotation": "b.jsonl", "repeat_time": 2}}
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    return tmp_path / "recipe.json"


@pytest.fixture
def prepared(recipe: Path, tmp_path: Path, raw_tokenizer: Tokenizer) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    raw_tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps({"vision_config": {"image_size": 32, "patch_size": 8}}))
    out = tmp_path / "out"
    done = run("prepare", recipe, "--out", out, "--model", model, "--context-length", LENGTH, "--workers", 0, "--no-page")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def loader(prepared: Path) -> Callable[..., StatefulLoader]:
    def make(**options: Any) -> StatefulLoader:
        names = {"first": 1, "second/part": 2}
        sources = [Source(PreparedDataset(prepared / name, LENGTH, name=name), times) for name, times in names.items()]
        return StatefulLoader(sources, context_length=LENGTH, tile_size=32, seed=3, workers=0, **options)

    return make


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_packs_are_those_of_the_loader_in_its_order(
    prepared: Path, recipe: Path, loader: Callable[..., StatefulLoader], ranks: int
):
    result = run("packs", prepared, "--context-length", LENGTH, "--recipe", recipe, "--seed", 3, "--ranks", ranks, "--show", 6)
    assert result.exit_code == 0, result.output
    assert "first: 35 samples\n" in result.stdout
    assert "second/part: 5 samples, 2 times an epoch\n" in result.stdout
    given = [list(islice(loader(rank=rank, world=ranks), 6)) for rank in range(ranks)]
    expected = [given[position % ranks][position // ranks] for position in range(6)]
    listed = re.split(r"^pack \d+: .*\n", result.stdout, flags=re.MULTILINE)[1:]
    assert [text.split() for text in listed] == [[sample.where for sample in pack.samples] for pack in expected]

    all_packs = loader(world=ranks).epoch_packs(0)
    datasets = [source.dataset for source in loader().sources]
    tokens = [sum(int(datasets[source].lengths[row]) for source, row in pack) for pack in all_packs]
    full = 100 * sum(tokens) / (LENGTH * len(tokens))
    told = (
        f"packs of an epoch: {len(tokens)} of at most {LENGTH} tokens, {full:.1f} % full; samples: 45, tokens: {sum(tokens):,}\n"
    )
    assert told in result.stdout
    assert f"tokens of a pack: {min(tokens)} to {max(tokens)}, " in result.stdout
    assert ("balance" in result.stdout) == (ranks > 1)


def test_without_a_recipe_every_sample_comes_once(prepared: Path):
    result = run("packs", prepared, "--context-length", LENGTH, "--show", 0)
    assert "samples: 40," in result.stdout
    assert "pack 0" not in result.stdout


def test_balance_is_the_work_done_of_the_work_that_steps_wait_for():
    assert _balance(np.array([1.0, 1.0, 2.0, 4.0, 9.0]), 2) == pytest.approx((1 + 3) / (1 + 4))
    assert _balance(np.array([5.0, 5.0]), 2) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "none"}, "report.json does not exist; give the --out folder of a finished eagle-data prepare"),
        ({"length": 65}, "prepare the dataset for context_length 65 first"),
        ({"recipe": "none.json"}, "none.json"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_one_line(prepared: Path, tmp_path: Path, change: dict[str, object], words: str):
    more = ("--recipe", change["recipe"]) if "recipe" in change else ()
    folder = tmp_path / str(change.get("folder", "out"))
    result = run("packs", folder, "--context-length", change.get("length", LENGTH), *more)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
