"""Data recipes: upstream's form is read, and a mistake is named with file, dataset, key and nearest neighbour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eagle_data.recipe import load_data_recipe, load_prepare_recipe
from eagle_data.strict import Strict, unknown_key
from pydantic import Field


def write(folder: Path, content: object, name: str = "recipe.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_recipe_is_read_with_paths_beside_it_and_upstreams_informative_keys_dropped(tmp_path: Path):
    (tmp_path / "media").mkdir()
    (tmp_path / "a.jsonl").touch()
    content = {
        "cats": {
            **{"annotation": "a.jsonl", "root": "media", "repeat_time": 1.5, "data_augment": True, "max_dynamic_tiles": 6},
            **{"length": 3, "modality": ["image"], "modility": [], "cats_description": "…", "description": "…", "weight": 2},
        }
    }
    entry = load_data_recipe(write(tmp_path, content))["cats"]
    assert (entry.annotation, entry.root) == (tmp_path / "a.jsonl", tmp_path / "media")
    assert (entry.repeat_time, entry.weight, entry.data_augment, entry.max_dynamic_tiles) == (1.5, 2, True, 6)


def test_yaml_is_read_as_json_is(tmp_path: Path):
    as_json = load_data_recipe(write(tmp_path, {"d": {"annotation": "a.jsonl"}}))
    assert load_data_recipe(write(tmp_path, "d: {annotation: a.jsonl}", "r.yaml")) == as_json


def test_a_path_that_exists_only_in_the_working_directory_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "a.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    entry = load_data_recipe(write(tmp_path / "recipes", {"d": {"annotation": "a.jsonl"}}))["d"]
    assert entry.annotation == Path("a.jsonl")


@pytest.mark.parametrize(("lengths", "expected"), [([512, 64, 512], (512, 64)), (64, (64,)), (None, ())])
def test_a_recipe_may_say_what_to_prepare_for(lengths: object, expected: tuple[int, ...], tmp_path: Path):
    (tmp_path / "model").mkdir()
    path = write(tmp_path, {"model": "model", "context_lengths": lengths, "d": {"annotation": "a.jsonl"}})
    recipe = load_prepare_recipe(path)
    assert (recipe.model, recipe.context_lengths) == (tmp_path / "model", expected)
    assert list(recipe.datasets) == list(load_data_recipe(path)) == ["d"]
    plain = load_prepare_recipe(write(tmp_path, {"d": {"annotation": "a.jsonl"}}))
    assert (plain.model, plain.context_lengths, plain.datasets) == (None, (), recipe.datasets)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"annotation": "a"}}, "'model' is no name for a dataset"),
        ({"context_lengths": {"annotation": "a"}}, "'context_lengths' is no name for a dataset"),
        ({"model": "m"}, "an object of datasets"),
        ({"model": 3, "d": {"annotation": "a"}}, "model must be the path of a checkpoint folder, not 3"),
        ({"model": "", "d": {"annotation": "a"}}, "model must be the path"),
        ({"context_lengths": [], "d": {"annotation": "a"}}, "context_lengths must be numbers of tokens"),
        ({"context_lengths": [0], "d": {"annotation": "a"}}, "context_lengths must be"),
        ({"context_lengths": ["32k"], "d": {"annotation": "a"}}, "context_lengths must be"),
        ({"context_lengths": True, "d": {"annotation": "a"}}, "context_lengths must be"),
        ({"d": {"anotation": "a"}}, "dataset 'd': unknown key 'anotation' in DatasetEntry; did you mean 'annotation'?"),
        ({"d": {"annotation": "a", "xyz": 1}}, "known keys are annotation, data_augment"),
        ({"d": {"annotation": "a", "repeat_time": 0}}, "dataset 'd': repeat_time: Input should be greater than 0"),
        ({"d": {"annotation": "a", "repeat_time": float("inf")}}, "dataset 'd': repeat_time: Input should be a finite number"),
        ({"d": {"annotation": "a", "weight": float("nan")}}, "dataset 'd': weight: Input should be a finite number"),
        ({"d": {"annotation": "a", "weight": -1}}, "dataset 'd': weight: Input should be greater than 0"),
        ({"d": {}}, "dataset 'd': annotation: Field required"),
        ({"d": "a.jsonl"}, "dataset 'd'"),
        ({"../d": {"annotation": "a"}}, "'../d' cannot name a dataset"),
        ({"": {"annotation": "a"}}, "'' cannot name a dataset"),
        ({}, "not empty"),
        ([], "an object of datasets"),
        ("{", "recipe.json:1: the recipe is not JSON"),
        ('{"d": {"annotation": "a"}, "d": {"annotation": "b"}}', "the key 'd' is written twice"),
    ],
)
def test_a_mistake_is_named_with_file_dataset_and_key(content: object, words: str, tmp_path: Path):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"recipe\.json") as caught:
        load_data_recipe(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_yaml_names_its_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"r\.yaml: the recipe is not YAML"):
        load_data_recipe(write(tmp_path, "a: [", "r.yaml"))


def test_a_known_key_may_be_written_by_its_alias():
    class Model(Strict):
        length: int = Field(1, alias="size")

    assert Model.model_validate({"size": 3}).length == 3
    with pytest.raises(ValueError, match="did you mean 'size'"):
        Model.model_validate({"sise": 3})


def test_the_nearest_known_key_is_offered_and_all_of_them_where_none_is_near():
    assert unknown_key("fsp", ["fps", "tiles"], "Rules") == "unknown key 'fsp' in Rules; did you mean 'fps'?"
    assert unknown_key("zzz", ["b", "a"], "Rules") == "unknown key 'zzz' in Rules; known keys are a, b"
