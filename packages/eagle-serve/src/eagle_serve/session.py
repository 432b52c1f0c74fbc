"""A conversation with one checkpoint: questions with images and videos, streamed answers, and what the last prompt showed.

It promises that `turns` always tells what happened: an answer that was stopped is kept as far as it went, and a question that
failed stays unanswered until it is retried, taken back or replaced. Not shared between threads; sessions share a checkpoint.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from eagle_serve.conversation import Kind, Media, Turn, check_media, media_from_bytes, media_from_file, to_messages
from eagle_serve.errors import PromptError
from eagle_serve.loading import Checkpoint
from eagle_serve.prompt import VisualSettings, prepare
from eagle_serve.seen import Seen
from eagle_serve.streaming import stream_prompt

__all__ = ["Session"]

Source: TypeAlias = "str | Path | bytes | Image.Image | Media"


class Session:
    """A multi-turn conversation.

    Attributes:
        checkpoint: the model that answers.
        system: system prompt; empty means the checkpoint's default.
        visual: how media are shown, for the whole conversation at each answer.
        turns: what was said; pictures stay with their turn.
        seen: what the latest prompt showed, None before the first.
    """

    def __init__(self, checkpoint: Checkpoint, *, system: str = "", visual: VisualSettings | None = None) -> None:
        self.checkpoint = checkpoint
        self.system = system
        self.visual = visual or VisualSettings()
        self.turns: list[Turn] = []
        self.seen: Seen | None = None

    @property
    def unanswered(self) -> bool:
        """Whether the last turn is a question."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def ask(self, text: str, images: Sequence[Source] = (), videos: Sequence[Source] = (), **generation: Any) -> Generator[str]:
        """Add a question and stream the answer; sources are paths, encoded bytes, or Pillow pictures. See `add` and `answer`."""
        pictures = [_media(item, "image", number) for number, item in enumerate(images, 1)]
        clips = [_media(item, "video", number) for number, item in enumerate(videos, 1)]
        self.add(text, pictures + clips)
        return self.answer(**generation)

    def add(self, text: str, media: Sequence[Media] = ()) -> None:
        """Append a question; an unanswered one before it is replaced. Raises PromptError for a question that cannot be put."""
        question = Turn("user", text.strip(), tuple(media))
        to_messages([question], self.system)
        self.retract_question()
        self.turns.append(question)

    def answer(self, **generation: Any) -> Generator[str]:
        """Stream the answer to the unanswered question; `generation` as in `stream_prompt`.

        The answer joins `turns` when the stream ends, or as far as it went (`stopped`) when it is closed early. Where reading
        media or generating fails, the error is raised and the question stays unanswered.
        """
        if not self.unanswered:
            raise PromptError("there is no unanswered question; add one first")
        turns = self.turns
        pieces: list[str] = []
        try:
            prompt = prepare(self.checkpoint, to_messages(turns, self.system), self.visual)
            self.seen = prompt.seen
            with closing(stream_prompt(self.checkpoint, prompt, **generation)) as stream:
                for piece in stream:
                    pieces.append(piece)
                    yield piece
        except (GeneratorExit, KeyboardInterrupt):
            turns.append(Turn("assistant", "".join(pieces), stopped=True))
            raise
        turns.append(Turn("assistant", "".join(pieces)))

    def retract_answer(self) -> None:
        """Forget the last answer, so that `answer` gives another one."""
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()

    def retract_question(self) -> None:
        """Take back an unanswered question."""
        if self.unanswered:
            self.turns.pop()

    def clear(self) -> None:
        """Forget everything that was said and shown."""
        # A new list: an answer that is still being stopped belongs to the old conversation.
        self.turns = []
        self.seen = None


def _media(source: Source, kind: Kind, number: int) -> Media:
    if isinstance(source, Media):
        return source
    if isinstance(source, bytes):
        return media_from_bytes(f"{kind} {number}", source, kind)
    if isinstance(source, Image.Image):
        media = Media(kind, source, str(getattr(source, "filename", "")) or f"{kind} {number}")
        check_media(media)
        return media
    return media_from_file(source, kind)
