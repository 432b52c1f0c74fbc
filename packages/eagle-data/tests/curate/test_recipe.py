"""Recipes of `eagle-data curate`: defaults of the paper, paths from the recipe's folder, and errors that name the mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from eagle_data.curate.prompts import pairs_model
from eagle_data.curate.question_types import QUESTION_TYPES
from eagle_data.curate.recipe import load_curate_recipe

ENDPOINT = "endpoint: {url: 'http://127.0.0.1:8000/v1/', model: m}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path: Path):
    recipe = load_curate_recipe(write(tmp_path, "videos: [a]\nclip_level: {}\nstory_level: {chapters: c.jsonl}\n" + ENDPOINT))
    assert (recipe.clips.seconds, recipe.clips.fps, recipe.diversity.threshold, recipe.diversity.within) == (10, 1, 0.5, None)
    assert recipe.clip_level is not None
    assert (recipe.clip_level.questions, recipe.clip_level.fps, len(recipe.clip_level.types)) == (5, 2, 63)
    assert recipe.story_level is not None
    assert (recipe.story_level.fps, recipe.story_level.max_frames, recipe.story_level.min_chapters) == (2, 50, 2)
    assert recipe.story_level.chapters == tmp_path / "c.jsonl"
    assert (recipe.videos, recipe.root) == ((str(tmp_path / "a"),), tmp_path)
    assert recipe.endpoint is not None
    assert recipe.endpoint.url == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("videos: [a]\nclip_levels: {}\n", "did you mean 'clip_level'"),
        ("videos: []\n", "videos"),
        ("videos: [a]\nclip_level: {}\n", "need an endpoint"),
        ("videos: [a]\nclip_level: {types: [object_cuont]}\n" + ENDPOINT, "did you mean 'object_count'"),
        ("videos: [a]\nclip_level: {types: [planning, planning]}\n" + ENDPOINT, "named twice"),
        ("videos: [a]\nclip_level: {types: [planning]}\n" + ENDPOINT, "5 types cannot be drawn from 1"),
        ("videos: [a]\nendpoint: {url: 'ftp://h', model: m}\n", "no http"),
        ("videos: [a]\nendpoint: {url: 'http://me:key@h/v1', model: m}\n", "key_env"),
        ("- a\n", "a recipe is a mapping"),
        ("{", "not YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str, tmp_path: Path):
    with pytest.raises(ValueError, match=words) as caught:
        load_curate_recipe(write(tmp_path, text))
    assert "recipe.yaml" in str(caught.value)


def test_there_are_63_question_types_and_each_makes_a_strict_schema():
    assert len(QUESTION_TYPES) == 63
    schema = pairs_model(tuple(QUESTION_TYPES)).model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(QUESTION_TYPES)
