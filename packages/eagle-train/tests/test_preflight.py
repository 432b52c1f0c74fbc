"""Recipes that cannot run here: all problems at once, before anything is written, each with its mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from eagle_train.errors import RecipeError
from eagle_train.preflight import check
from eagle_train.recipe_files import load_recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.kind=deepspeed", r"DeepSpeed engine is not built yet; use engine.kind=local"),
        ("parallel={cp: 6, ulysses: 4}", r"parallel.ulysses: 4 does not divide parallel.cp=6; use one of 1, 2, 3, 6"),
        ("evaluation.sets={a: gone.jsonl}", r"evaluation.sets.a: there is no file .*gone.jsonl"),
        ("evaluation.sets={overall: gone.jsonl}", r"'overall' is the name of the total"),
    ],
)
def test_what_is_missing_or_not_built_is_said_with_its_mend(override: str, message: str):
    with pytest.raises(RecipeError, match=message):
        check(load_recipe("quickstart", [override]))


def test_the_built_in_recipes_for_this_machine_pass():
    for name in ("quickstart", "smoke"):
        check(load_recipe(name))


def test_finetuning_without_data_says_which_file_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"there is no file .*my_data.json; name your data recipe with data.recipe=FILE"):
        check(load_recipe("finetune-8b", ["engine.device=cpu"]))
    (tmp_path / "my_data.json").write_text("{}")
    check(load_recipe("finetune-8b", ["engine.device=cpu"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(RecipeError, match=r"no CUDA device here; use engine\.device=cpu"):
        check(load_recipe("quickstart", ["engine.device=cuda"]))


def test_several_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as error:
        check(load_recipe("quickstart", ["engine.kind=deepspeed", "parallel.ulysses=2"]))
    assert "not built yet" in str(error.value)
    assert "does not divide" in str(error.value)


def test_processes_beyond_the_context_parallel_ones_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match=r"WORLD_SIZE is 4, but this recipe trains with 2 \(parallel.cp\).*set parallel.cp=4"):
        check(load_recipe("quickstart", ["parallel.cp=2"]))
    check(load_recipe("quickstart", ["parallel.cp=4"]))


@pytest.mark.parametrize("path", ["./gone", "/gone", "gone", "a/b/c"])
def test_a_model_folder_that_is_not_there_is_named(path: str, tmp_path: Path):
    text = f"name: m\ndata: {{datasets: {{a: {{annotation: a.jsonl}}}}}}\nmodel: {{path: {path}}}\n"
    (tmp_path / "m.yaml").write_text(text + "stages: [{name: s, context_length: 64, steps: 1, datasets: [b]}]\n")
    with pytest.raises(RecipeError) as error:
        check(load_recipe(str(tmp_path / "m.yaml")))
    assert "model.path: " in str(error.value)
    assert f"data.datasets.a.annotation: there is no file {tmp_path / 'a.jsonl'}" in str(error.value)
    assert "stage 's': there is no dataset 'b'; the data has a" in str(error.value)
