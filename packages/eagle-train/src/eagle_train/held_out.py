"""The evaluation phase: held-out questions put to the saved checkpoint, loaded as a user would load it.

It gives the figures and the examples that the report shows. What counts as right is `eagle_train.evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle_train.digits import TASKS
from eagle_train.display import Bar
from eagle_train.evaluation import Answer, accuracy, answer, majority, read_questions
from eagle_train.recipe import Recipe
from eagle_train.report import choose_shown, show
from eagle_train.run_folder import RunFolder

Phase = Callable[[str, int], AbstractContextManager[Bar]]


@dataclass(frozen=True)
class HeldOut:
    """Rates by task and "overall" (empty where nothing was asked), counts of questions, rejects and examples to show."""

    accuracy: dict[str, float]
    accuracy_noise: dict[str, float]
    accuracy_majority: dict[str, float]
    questions: dict[str, int]
    rejects: tuple[dict[str, str], ...]
    shown: tuple[dict[str, Any], ...]


def question_sets(recipe: Recipe, folder: RunFolder) -> tuple[dict[str, Path], Path]:
    """The recipe's own question files and media root, or those of the corpus it built."""
    evaluation = recipe.evaluation
    if evaluation.sets or recipe.data.corpus is None:
        return dict(evaluation.sets), evaluation.root or Path()
    return {task: folder.corpus / "held_out" / f"{task}.jsonl" for task in TASKS}, folder.corpus / "media"


def evaluate(recipe: Recipe, folder: RunFolder, device: torch.device, phase: Phase) -> HeldOut:
    """Ask `folder.final` every held-out question of the recipe, twice where it wants noise as well."""
    questions, rejects = read_questions(*question_sets(recipe, folder))
    answers: list[Answer] = []
    noisy: list[Answer] = []
    shown: list[dict[str, Any]] = []
    if questions:
        model, processor = _load(folder.final, device)
        evaluation = recipe.evaluation
        with phase("evaluation", (1 + evaluation.noise) * len(questions)) as bar:
            lengths = {"max_new_tokens": evaluation.max_new_tokens, "batch": evaluation.batch}
            answers, unreadable = answer(
                model, processor, questions, **lengths, progress=lambda done: bar.update(done, "questions answered")
            )
            rejects += unreadable
            if evaluation.noise:
                noisy, _ = answer(
                    model,
                    processor,
                    [item.question for item in answers],
                    **lengths,
                    noise_seed=recipe.seed,
                    progress=lambda done: bar.update(len(questions) + done, "questions answered about noise"),
                )
            shown = [show(item, processor) for item in choose_shown(answers, evaluation.pictures)]
    asked = [item.question for item in answers]
    counts = {"overall": len(asked)}
    for question in asked:
        counts[question.task] = counts.get(question.task, 0) + 1
    return HeldOut(
        accuracy=accuracy(answers),
        accuracy_noise=accuracy(noisy),
        accuracy_majority=majority(asked),
        questions=counts,
        rejects=tuple({"where": reject.where, "reason": reject.reason} for reject in rejects),
        shown=tuple(shown),
    )


def _load(final: Path, device: torch.device) -> tuple[Any, Any]:
    import eagle_model  # noqa: F401  # registers the architecture with the Auto classes
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loader: Any = AutoModelForImageTextToText
    return loader.from_pretrained(final).eval().to(device), AutoProcessor.from_pretrained(final)


__all__ = ["HeldOut", "evaluate", "question_sets"]
