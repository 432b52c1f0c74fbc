"""Evaluation by generation: held-out questions answered through the same processor and `generate` a user calls.

Exact match after stripping white space. The same questions can be asked with every picture replaced by noise, which
says how much the answers owe to the pictures, and the majority answer says what guessing would reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eagle_data.annotations import Reject, read_annotations
from eagle_data.images import load_image
from eagle_data.placeholders import split_placeholders
from eagle_data.samples import Sample


@dataclass(frozen=True)
class Question:
    """A held-out question: chat messages up to the first answer, and the true answer."""

    task: str
    where: str
    messages: tuple[dict[str, Any], ...]
    text: str
    truth: str


@dataclass(frozen=True)
class Answer:
    question: Question
    text: str

    @property
    def right(self) -> bool:
        return self.text.strip() == self.question.truth.strip()


def read_questions(sets: Mapping[str, Path], root: Path) -> tuple[list[Question], list[Reject]]:
    """Questions of every task, from JSONL in the training schema; the first answer of a conversation is the truth."""
    questions, rejects = [], []
    for task, path in sets.items():
        for line in read_annotations(path, dataset=task, root=root):
            if isinstance(line, Reject):
                rejects.append(line)
            else:
                questions.append(_question(task, line))
    return questions, rejects


def _question(task: str, sample: Sample) -> Question:
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    for message in sample.messages:
        if message.role == "assistant":
            return Question(task, sample.where, tuple(messages), " ".join(texts), message.text)
        content: list[dict[str, Any]] = []
        for part in split_placeholders(message.text):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                texts.append(part.strip())
                continue
            kind, k = part
            if kind == "image":
                content.append({"type": "image", "image": load_image(sample.images[k - 1].source)})
            else:
                clip = sample.videos[k - 1]
                item: dict[str, Any] = {"type": "video", "video": clip.path}
                if clip.start is not None:
                    item["video_start"] = clip.start
                if clip.end is not None:
                    item["video_end"] = clip.end
                content.append(item)
        messages.append({"role": message.role, "content": content})
    raise ValueError(f"{sample.where} has no answer to compare with")  # annotations without one are rejected on reading


def answer(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch: int,
    noise_seed: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Greedy answers to `questions`, `batch` at a time; with `noise_seed` every picture is uniform noise instead."""
    answers: list[Answer] = []
    for start in range(0, len(questions), batch):
        group = questions[start : start + batch]
        rng = None if noise_seed is None else np.random.default_rng([noise_seed, start])
        inputs = prompt_inputs(processor, [list(question.messages) for question in group], rng)
        with torch.inference_mode():
            generated = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        for question, text in zip(group, processor.tokenizer.batch_decode(generated, skip_special_tokens=True), strict=True):
            answers.append(Answer(question, text))
        progress(len(answers))
    return answers


def prompt_inputs(processor: Any, conversations: Sequence[list[dict[str, Any]]], noise: np.random.Generator | None = None) -> Any:
    """Model inputs of several conversations, left-padded to one batch."""
    texts = [processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for messages in conversations]
    images, videos, video_kwargs = processor.process_vision_info(list(conversations), return_video_kwargs=True)
    if noise is not None:
        images = images and [_noise(image.size, noise) for image in images]
        videos = videos and [noise.integers(0, 256, np.asarray(video).shape, dtype=np.uint8) for video in videos]
    return processor(
        text=texts, images=images, videos=videos, videos_kwargs=video_kwargs, padding=True, padding_side="left", return_tensors="pt"
    )


def _noise(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def accuracy(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of right answers per task and overall (over all questions), rounded to four places."""
    tasks = list(dict.fromkeys(item.question.task for item in answers))
    rates = {task: [item.right for item in answers if item.question.task == task] for task in tasks}
    overall = [item.right for item in answers]
    return {name: round(sum(right) / len(right), 4) for name, right in {"overall": overall, **rates}.items() if right}


def majority(questions: Sequence[Question]) -> dict[str, float]:
    """What always giving each task's most frequent true answer would score."""
    tasks = list(dict.fromkeys(question.task for question in questions))
    right, rates = 0, {}
    for task in tasks:
        truths = Counter(question.truth for question in questions if question.task == task)
        best = truths.most_common(1)[0][1]
        right += best
        rates[task] = round(best / truths.total(), 4)
    return {"overall": round(right / max(len(questions), 1), 4), **rates}
