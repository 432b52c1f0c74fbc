"""What is asked of the endpoint, as values: the words, the pictures by their seconds, and the form that the answer must have.

Three kinds (appendix E.1 of the paper, in our words): a caption of a clip or chapter, questions about a clip from its
captions, and questions about a whole video from the captions of its chapters. Pure: decodes nothing, sends nothing. A
request's `key` is the same exactly when the same would be asked of the same model, so a finished answer is never paid for
again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, create_model

from eagle_data.curate.question_types import QUESTION_TYPES
from eagle_data.curate.recipe import EndpointSettings

__all__ = [
    "Caption",
    "Chapter",
    "Pair",
    "Pictures",
    "Request",
    "caption_request",
    "clip_questions_request",
    "story_questions_request",
]

_VERSION = 1  # raise it when words or forms change: answers to the old ones are then asked for again
_SYSTEM = (
    "You annotate videos for training a vision-language model. Say only what can be seen or read. "
    "Answer with one JSON object and nothing else: no Markdown, no comment."
)
_PLACEHOLDER = re.compile(r"<(?:image|video|document)(?:-[0-9]+)?>")


def _written(text: str) -> str:
    """A text that can stand in a conversation as it is."""
    text = text.strip()
    if not text:
        raise ValueError("must not be empty")
    if _PLACEHOLDER.search(text):
        raise ValueError("must not hold a placeholder such as <video>")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("must not hold half a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_written)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Caption(_Answer):
    """A short caption of one sentence, which also serves as context anchor, and a detailed one."""

    brief: Text
    detailed: Text


class Pair(_Answer):
    """One question with its answer."""

    question: Text
    answer: Text


@dataclass(frozen=True)
class Chapter:
    """A stretch of a video that people gave a title, in seconds."""

    start: float
    end: float
    title: str


@dataclass(frozen=True)
class Pictures:
    """Frames to be sent: of which file (and its `fingerprint`), at which seconds."""

    path: Path
    name: str
    fingerprint: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Request:
    """One thing to ask.

    Attributes:
        kind: caption, chapter, questions or story.
        unit: the clip or video that it is about, for people.
        text: the words of the user's turn; `system` those before it.
        answer: the pydantic model that the answer's JSON must fit.
        pictures: frames that go with the words.
    """

    kind: str
    unit: str
    text: str
    answer: type[BaseModel]
    pictures: Pictures | None = None
    system: str = _SYSTEM

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the answer."""
        return self.answer.model_json_schema()

    def key(self, settings: EndpointSettings) -> str:
        """32 hexadecimal digits of everything that the answer depends on: model, options, words, form, and frames."""
        frames: list[Any] = []
        if self.pictures is not None:
            seconds = [round(second, 6) for second in self.pictures.seconds]
            frames = [self.pictures.name, self.pictures.fingerprint, seconds, settings.picture, settings.quality]
        facts = [_VERSION, settings.model, settings.options, self.kind, self.system, self.text, self.schema(), frames]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def caption_request(kind: str, unit: str, pictures: Pictures, *, start: float, end: float, title: str = "") -> Request:
    """Captions of a stretch from its frames (E.1.1); of a chapter with the title that people gave it."""
    times = ", ".join(f"{second:.1f}" for second in pictures.seconds)
    quoted = json.dumps(title, ensure_ascii=False)
    about = f"\nPeople gave this part the title {quoted}. Describe above all what it names." if title else ""
    text = (
        f"These are {len(pictures.seconds)} frames of a video, from {start:.1f} s to {end:.1f} s, at {times} s.{about}\n"
        "Write two captions. Treat the frames as one continuous piece of film; never speak of frames or pictures.\n"
        '"brief": one sentence of 15 to 30 words by which the part can be told from the rest of the video.\n'
        '"detailed": what is there and what happens, in order: people, objects, actions, changes, the camera. '
        "Give text on the screen in its own language and in English; of text that cannot be read say only that it is there.\n"
        'Form: {"brief": "…", "detailed": "…"}'
    )
    return Request(kind, unit, text, Caption, pictures)


def clip_questions_request(unit: str, caption: Caption, types: Sequence[str]) -> Request:
    """One question of each type about a clip, from its captions alone (E.1.2)."""
    text = (
        f"A clip of a video is described like this.\nBrief: {caption.brief}\nDetailed: {caption.detailed}\n\n"
        f"{_asked(types)}\nLeave out any question that the brief caption alone answers."
    )
    return Request("questions", unit, text, pairs_model(tuple(types)))


def story_questions_request(unit: str, chapters: Sequence[tuple[Chapter, Caption]], types: Sequence[str]) -> Request:
    """One question of each type about a whole video, from its chapters' titles, times and captions (E.1.3)."""
    lines = [f"{c.start:.1f} s ~ {c.end:.1f} s: {c.title}: {caption.detailed}" for c, caption in chapters]
    text = (
        "A video has these chapters:\n" + "\n".join(lines) + f"\n\n{_asked(types)}\n"
        "Ask about the video as a whole: prefer questions whose answer needs several chapters. "
        "Never speak of chapters or captions."
    )
    return Request("story", unit, text, pairs_model(tuple(types)))


def pairs_model(types: tuple[str, ...]) -> type[BaseModel]:
    """The form of an answer: for each type a pair, or null where no such question can be asked."""
    fields: dict[str, Any] = dict.fromkeys(types, (Pair | None, ...))
    return create_model("Questions", __base__=_Answer, **fields)


def _asked(types: Sequence[str]) -> str:
    listed = "\n".join(f"- {name}: {QUESTION_TYPES[name]}" for name in types)
    return (
        f"Write one question with its answer for each of these types:\n{listed}\n"
        "Each must be answered by what is described, without guessing, and its answer must be short and certain. "
        "Where a type does not fit, write null.\n"
        'Form: an object with these types as keys, each {"question": "…", "answer": "…"} or null.'
    )
