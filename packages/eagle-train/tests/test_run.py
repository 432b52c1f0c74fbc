"""Whole runs of a quick recipe: what lies on disk afterwards, what a second start does, and that equal recipes agree."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eagle_train import pipeline
from eagle_train.errors import CheckpointError, RecipeError
from eagle_train.recipe import Recipe
from eagle_train.recipe_files import load_recipe

QuickRecipe = Callable[..., Recipe]
RunIt = Callable[..., str]
Stable = Callable[[Path], dict[str, Any]]


def test_a_run_leaves_every_file_that_is_promised(finished: Path, quick_recipe: QuickRecipe):
    names = {path.name for path in finished.iterdir()}
    promised = {"recipe.yaml", "prepared", "checkpoints", "checkpoint-final", "events", "report.html", "report.json"}
    assert promised <= names
    assert not any(name.endswith(".part") for name in names)
    assert load_recipe(str(finished / "recipe.yaml")) == quick_recipe(finished)
    checkpoints = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert len(checkpoints) == quick_recipe(finished).checkpoints.keep
    assert all(name.startswith("step-") for name in checkpoints)


def test_the_report_holds_what_is_promised(finished: Path, quick_recipe: QuickRecipe):
    report = json.loads((finished / "report.json").read_text())
    recipe = quick_recipe(finished)
    assert [(s["name"], s["context_length"], s["steps"]) for s in report["stages"]] == [
        (stage.name, stage.context_length, stage.steps) for stage in recipe.stages
    ]
    for stage, wanted in zip(report["stages"], recipe.stages, strict=True):
        assert 0 < stage["tokens"] <= wanted.context_length * stage["steps"] * wanted.packs_per_step
        assert all(math.isfinite(stage[key]) and stage[key] > 0 for key in ("loss_first", "loss_last"))
    assert set(report["accuracy"]) == {"overall", "digit", "strip", "clip"}
    assert set(report["accuracy_noise"]) == set(report["accuracy_majority"]) == set(report["accuracy"])
    assert all(0 <= rate <= 1 for key in ("accuracy", "accuracy_noise", "accuracy_majority") for rate in report[key].values())
    assert set(report["samples"]) == {"read", "trained", "rejected", "degraded"}
    assert 0 < report["samples"]["trained"] <= report["samples"]["read"]
    assert report["seed"] == recipe.seed
    assert report["rejects"] == report["questions_rejected"] == []
    assert str(finished) not in (finished / "report.json").read_text()


def test_the_final_checkpoint_is_a_hugging_face_folder_that_loads_by_the_auto_classes(finished: Path):
    import eagle_model  # noqa: F401
    from transformers import AutoModelForImageTextToText, AutoProcessor

    final = finished / "checkpoint-final"
    files = {path.name for path in final.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "generation_config.json"} <= files
    model, processor = AutoModelForImageTextToText.from_pretrained(final), AutoProcessor.from_pretrained(final)
    assert model.num_parameters() == json.loads((finished / "report.json").read_text())["parameters"]
    assert processor.video_fps == load_recipe("smoke").data.fps or load_recipe("smoke").data.fps == 2.0


def test_the_events_hold_every_step_of_every_stage(finished: Path, quick_recipe: QuickRecipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "events"))
    events.Reload()
    recipe = quick_recipe(finished)
    stages = (*recipe.pretraining, *recipe.stages)
    steps: list[int] = []
    for stage in stages:
        assert {f"{stage.name}/{key}" for key in ("loss", "lr", "grad_norm", "tokens_per_second")} <= set(
            events.Tags()["scalars"]
        )
        steps += [event.step for event in events.Scalars(f"{stage.name}/loss")]
    assert steps == list(range(1, sum(stage.steps or 0 for stage in stages) + 1))


def test_output_off_a_terminal_is_plain_lines_that_end_with_the_two_next_commands(finished: Path):
    output = (finished.parent / "output.txt").read_text()
    assert "\x1b" not in output
    assert "\r" not in output
    lines = output.rstrip().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("✓")][:3] == ["corpus", "tower", "preparation"]
    chat, demo = lines[-2:]
    assert "eagle-serve chat --model '" in chat  # the folder's name holds a space
    assert "--image" in chat
    assert "eagle-serve demo --model '" in demo


def test_a_finished_run_says_so_and_changes_nothing(finished: Path, quick_recipe: QuickRecipe, run: RunIt):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    assert run(quick_recipe(finished)) == ""
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"} == before


def test_the_same_seed_gives_the_same_report_in_another_folder_and_fresh_starts_over(
    finished: Path, tmp_path: Path, quick_recipe: QuickRecipe, run: RunIt, stable: Stable
):
    other = tmp_path / "other"
    run(quick_recipe(other, "seed=1"))
    assert stable(other)["stages"] != stable(finished)["stages"]
    with pytest.raises(RecipeError, match="seed: 1 there, 0 here"):
        run(quick_recipe(other))
    run(quick_recipe(other), fresh=True)
    assert stable(other) == stable(finished)


def test_a_crash_of_the_evaluation_loses_no_training(
    finished: Path, tmp_path: Path, quick_recipe: QuickRecipe, run: RunIt, stable: Stable, monkeypatch: pytest.MonkeyPatch
):
    def crash(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    recipe = quick_recipe(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", crash)
        with pytest.raises(RuntimeError, match="say"):
            run(recipe)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoint-final").iterdir()}
    output = run(recipe)
    assert "going on after step" in output
    assert "align" not in output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert stable(tmp_path / "run") == stable(finished)


def test_a_foreign_checkpoint_in_the_run_folder_is_noticed(tmp_path: Path, quick_recipe: QuickRecipe, run: RunIt):
    run(quick_recipe(tmp_path / "wide", "model.toy.hidden=64"))
    recipe = quick_recipe(tmp_path / "run")
    run(recipe)
    (tmp_path / "run" / "report.json").unlink()
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        (tmp_path / "wide" / "checkpoints" / checkpoint.name / "model.safetensors").replace(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="not of this run's model"):
        run(recipe)
