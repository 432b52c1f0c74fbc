"""The model that a run starts from: a checkpoint by path or hub name, or the toy, built and given a tower here.

The toy's folder `start/` appears whole or not at all, so an interrupted build is done again. Loading always goes
through a saved folder, as it would for a released checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import eagle_kernels
import torch

from eagle_train.display import Bar
from eagle_train.errors import RecipeError
from eagle_train.recipe import Recipe
from eagle_train.toy_model import ToyModel

_RELEASED_FPS = 2.0
"""The rate that a processor without one of its own means."""

Phase = Callable[[str, int], AbstractContextManager[Bar]]


def build_start(recipe: Recipe, toy: ToyModel, corpus: Path, folder: Path, phase: Phase) -> dict[str, Any]:
    """Write the toy's starting checkpoint to `folder` unless it is there, and return how its tower was pretrained.

    The returned mapping (`steps`, `samples`, `accuracy`, `losses`) is empty where the recipe pretrains no tower.
    """
    record = folder / "tower.json"
    if not record.is_file():
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        tower = _build(recipe, toy, corpus, partial, phase)
        (partial / record.name).write_text(json.dumps(tower), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    return json.loads(record.read_text(encoding="utf-8"))


def _build(recipe: Recipe, toy: ToyModel, corpus: Path, folder: Path, phase: Phase) -> dict[str, Any]:
    from eagle_model import Eagle2_5_VLForConditionalGeneration

    from eagle_train.tower_pretraining import pretrain_tower
    from eagle_train.toy_model import build_toy, training_texts

    torch.manual_seed(recipe.seed)
    build_toy(toy, training_texts(corpus), folder)
    config = recipe.tower_pretraining
    if config is None or not config.steps:
        return {}
    model: Any = Eagle2_5_VLForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    losses: list[float] = []
    with phase("tower pretraining", config.steps) as bar:

        def progress(step: int, loss: float) -> None:
            losses.append(loss)
            bar.update(step, f"loss {loss:.3f}")

        accuracy = pretrain_tower(model, config, seed=recipe.seed, progress=progress)
    model.save_pretrained(folder)
    return {"steps": config.steps, "samples": config.steps * config.batch, "accuracy": round(accuracy, 4), "losses": losses}


def load_start(recipe: Recipe, path: str, device: torch.device) -> tuple[Any, Any]:
    """Model, ready to train on `device`, and processor of the checkpoint `path` (a folder or a hub name).

    Raises RecipeError where there is no such checkpoint.
    """
    from eagle_model import Eagle2_5_VLForConditionalGeneration, Eagle2_5_VLProcessor

    loader: Any = Eagle2_5_VLForConditionalGeneration
    try:
        processor = Eagle2_5_VLProcessor.from_pretrained(path)
        model = loader.from_pretrained(
            path, attn_implementation=recipe.model.attention, dtype=getattr(torch, recipe.engine.dtype)
        )
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise RecipeError(
            f"model.path: {path} cannot be loaded ({reason}); give the folder of an Eagle 2.5 checkpoint"
        ) from error
    # Saved with the final checkpoint, so that every later use samples videos as training did.
    processor.video_fps = None if recipe.data.fps == _RELEASED_FPS else recipe.data.fps
    if recipe.model.kernels:
        eagle_kernels.apply(model)
    if recipe.engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device), processor


__all__ = ["build_start", "load_start"]
