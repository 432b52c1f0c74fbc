"""Evaluation by generation: held-out questions answered through the same processor and `generate` a user calls.

Exact match after stripping white space. The same questions can be asked with every picture replaced by noise, which
says how much the answers owe to the pictures, and the majority answer says what guessing would reach. A question that
cannot be asked becomes a `Reject`; it never stops the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eagle_data.annotations import Reject, read_annotations
from eagle_data.errors import EagleDataError
from eagle_data.placeholders import split_placeholders
from eagle_data.samples import Sample
from PIL import Image


@dataclass(frozen=True)
class Question:
    """A held-out question: chat messages up to the first learned answer (media by reference), and that answer.

    `text` is what is asked, without media, for reports; `where` is `file:line`.
    """

    task: str
    where: str
    messages: tuple[dict[str, Any], ...]
    text: str
    truth: str


@dataclass(frozen=True)
class Answer:
    """What the model said to a question."""

    question: Question
    text: str

    @property
    def right(self) -> bool:
        return self.text.strip() == self.question.truth.strip()


@dataclass(frozen=True)
class Media:
    """The decoded media of one question: pictures, and clips uint8 `[frames, height, width, 3]` with rate and times."""

    images: tuple[Image.Image, ...]
    videos: tuple[Any, ...]
    fps: tuple[float, ...]
    timestamps: tuple[Sequence[float], ...]

    def as_noise(self, rng: np.random.Generator) -> Media:
        """The same shapes and times with every pixel drawn uniformly."""
        images = tuple(
            Image.fromarray(rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)) for image in self.images
        )
        videos = tuple(rng.integers(0, 256, np.shape(video), dtype=np.uint8) for video in self.videos)
        return Media(images, videos, self.fps, self.timestamps)


def read_questions(sets: Mapping[str, Path], root: Path) -> tuple[list[Question], list[Reject]]:
    """Questions of every task, from JSONL in the training schema.

    The first answer of a conversation is the truth; answers of weight 0 before it are part of what is asked.
    """
    questions: list[Question] = []
    rejects: list[Reject] = []
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
            if message.learned:
                return Question(task, sample.where, tuple(messages), " ".join(texts), message.text)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": message.text}]})
            continue
        content: list[dict[str, Any]] = []
        for part in split_placeholders(message.text):
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
                if message.role == "user":
                    texts.append(part.strip())
                continue
            kind, k = part
            if kind == "image":
                content.append({"type": "image", "image": sample.images[k - 1].source})
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


def read_media(processor: Any, question: Question) -> Media:
    """Decode a question's media as the processor samples them; raises ValueError for what cannot be read or is too short."""
    images, videos, kwargs = processor.process_vision_info(list(question.messages), return_video_kwargs=True)
    return Media(tuple(images or ()), tuple(videos or ()), tuple(kwargs.get("fps", ())), tuple(kwargs.get("timestamps", ())))


def answer(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch: int,
    noise_seed: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Answer], list[Reject]]:
    """Greedy answers to `questions`, `batch` at a time, and rejects for those whose media cannot be read.

    With `noise_seed` every picture is uniform noise instead. `progress` is told how many questions are done.
    """
    answers: list[Answer] = []
    rejects: list[Reject] = []
    for start in range(0, len(questions), batch):
        rng = None if noise_seed is None else np.random.default_rng([noise_seed, start])
        group: list[tuple[Question, Media]] = []
        for question in questions[start : start + batch]:
            try:
                media = read_media(processor, question)
            except ValueError as error:
                kind = str(getattr(error, "kind", "unreadable media")) if isinstance(error, EagleDataError) else "bad record"
                rejects.append(Reject(question.task, question.where, str(error), kind))
                continue
            group.append((question, media if rng is None else media.as_noise(rng)))
        if group:
            inputs = prompt_inputs(processor, group)
            with torch.inference_mode():
                generated = model.generate(**inputs.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
            texts = processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
            answers += [Answer(question, text) for (question, _), text in zip(group, texts, strict=True)]
        progress(min(start + batch, len(questions)))
    return answers, rejects


def prompt_inputs(processor: Any, group: Sequence[tuple[Question, Media]]) -> Any:
    """Model inputs of several questions, left-padded to one batch."""
    texts = [
        processor.apply_chat_template(list(question.messages), tokenize=False, add_generation_prompt=True)
        for question, _ in group
    ]
    videos = [video for _, media in group for video in media.videos]
    return processor(
        text=texts,
        images=[image for _, media in group for image in media.images] or None,
        videos=videos or None,
        videos_kwargs={
            "fps": [fps for _, media in group for fps in media.fps],
            "timestamps": [times for _, media in group for times in media.timestamps],
        },
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


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


__all__ = [
    "Answer",
    "Media",
    "Question",
    "accuracy",
    "answer",
    "majority",
    "prompt_inputs",
    "read_media",
    "read_questions",
]
