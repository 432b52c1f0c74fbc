"""The figures of a finished run: stage progress, answers and sample counts to the values of `report.json`.

Pure arithmetic on what the phases hand over. Equal recipes give equal values, except `seconds` and `peak_rss_gib`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eagle_train.held_out import HeldOut
from eagle_train.recipe import Recipe
from eagle_train.report import Curve
from eagle_train.shown_paths import relative_to_run
from eagle_train.stage_data import SampleCounts
from eagle_train.training import StageProgress

STAND_IN = (
    "The tower and the language model were pretrained here for a minute or two, on digits and on text; "
    "they stand in for SigLIP2 and Qwen2.5."
)


def curves(recipe: Recipe, progress: Sequence[StageProgress], tower: Mapping[str, Any]) -> list[Curve]:
    """The loss history of everything that was trained, in order; `tower` may be empty."""
    stages = (*recipe.pretraining, *recipe.stages)
    own = [Curve("tower", tower["losses"])] if tower else []
    return own + [Curve(stage.name, done.losses) for stage, done in zip(stages, progress, strict=True)]


def report_values(
    recipe: Recipe,
    folder: Path,
    *,
    progress: Sequence[StageProgress],
    tower: Mapping[str, Any],
    held_out: HeldOut,
    samples: SampleCounts,
    parameters: int,
    seconds: float,
    peak_rss_gib: float,
) -> dict[str, Any]:
    """Everything that `report.json` holds, in its order; paths are relative to the run folder."""
    stages = [
        {
            "name": stage.name,
            "context_length": stage.context_length,
            "steps": done.steps,
            "tokens": done.tokens,
            "samples": done.samples,
            **_first_and_last(done.losses),
        }
        for stage, done in zip((*recipe.pretraining, *recipe.stages), progress, strict=True)
    ]
    first = len(recipe.pretraining)
    pretraining = stages[:first]
    if tower:
        entry = {"name": "tower", "context_length": None, "steps": tower["steps"], "tokens": 0, "samples": tower["samples"]}
        pretraining = [{**entry, **_first_and_last(tower["losses"]), "accuracy": tower["accuracy"]}, *pretraining]
    return {
        "name": recipe.name,
        "description": recipe.description,
        "seconds": round(seconds, 1),
        "peak_rss_gib": round(peak_rss_gib, 3),
        "seed": recipe.seed,
        "parameters": parameters,
        "pretraining": pretraining,
        "stages": stages[first:],
        "accuracy": held_out.accuracy,
        "accuracy_noise": held_out.accuracy_noise,
        "accuracy_majority": held_out.accuracy_majority,
        "questions": held_out.questions,
        "samples": {
            "read": samples.read,
            "trained": samples.trained,
            "rejected": samples.rejected,
            "degraded": samples.degraded,
        },
        "rejects": _relative(samples.rejects, folder),
        "questions_rejected": _relative(held_out.rejects, folder),
        "notes": STAND_IN if recipe.model.toy else "",
    }


def _first_and_last(losses: Sequence[float]) -> dict[str, float]:
    """Means over the first and the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    return {"loss_first": _mean(losses[:tenth]), "loss_last": _mean(losses[-tenth:])}


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 4)


def _relative(rejects: Sequence[Mapping[str, str]], folder: Path) -> list[dict[str, str]]:
    return [{key: relative_to_run(text, folder) for key, text in reject.items()} for reject in rejects]


__all__ = ["curves", "report_values"]
