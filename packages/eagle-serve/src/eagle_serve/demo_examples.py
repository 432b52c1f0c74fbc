"""Questions to start with, where the checkpoint is the quick start's: one held-out question of each task.

They are read from the run's own corpus folder beside the checkpoint, so they are pictures the model was not trained on. Any
other checkpoint has none.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from eagle_data.annotations import Reject, read_annotations
from eagle_data.errors import EagleDataError
from eagle_data.images import load_image
from eagle_data.placeholders import split_placeholders
from eagle_data.samples import Sample
from eagle_data.video import open_video
from PIL import Image, ImageOps

from eagle_serve.conversation import Media, check_media

__all__ = ["Example", "quickstart_examples"]

_PREVIEW_SIZE = (448, 128)


@dataclass(frozen=True)
class Example:
    """A question with its media and the true answer; `preview` is a PNG of one size for all, frames of a video side by side."""

    task: str
    question: str
    media: tuple[Media, ...]
    truth: str
    preview: bytes


def quickstart_examples(checkpoint: str | Path) -> tuple[Example, ...]:
    """One example per held-out file of `corpus/` beside the checkpoint folder; empty where there is none or it is unreadable."""
    corpus = Path(checkpoint).expanduser().resolve().parent / "corpus"
    examples = [_first_example(file, corpus / "media") for file in sorted((corpus / "held_out").glob("*.jsonl"))]
    return tuple(example for example in examples if example is not None)


def _first_example(file: Path, root: Path) -> Example | None:
    try:
        for line in read_annotations(file, dataset=file.stem, root=root):
            if not isinstance(line, Reject) and all(clip.start is clip.end is None for clip in line.videos):
                return _example(file.stem, line)
    except (EagleDataError, OSError):
        # A convenience of the page: a damaged corpus must not keep anyone from chatting.
        return None
    return None


def _example(task: str, sample: Sample) -> Example | None:
    question = next((message for message in sample.messages if message.role == "user"), None)
    answer = next((message for message in sample.messages if message.role == "assistant"), None)
    if question is None or answer is None:
        return None
    media: list[Media] = []
    texts: list[str] = []
    for part in split_placeholders(question.text):
        if isinstance(part, str):
            texts.append(part.strip())
        elif part[0] == "image":
            media.append(Media("image", _png(load_image(sample.images[part[1] - 1].source)), f"{task}.png"))
        else:
            path = Path(sample.videos[part[1] - 1].path)
            media.append(Media("video", path.read_bytes(), path.name))
    for item in media:
        check_media(item)
    if not media:
        return None
    return Example(task, " ".join(text for text in texts if text), tuple(media), answer.text, _preview(media[0]))


def _preview(media: Media) -> bytes:
    if media.kind == "image":
        pictures = [load_image(media.source)]
    else:
        assert isinstance(media.source, bytes)
        with open_video(media.source) as video:
            last = video.metadata.frames - 1
            pictures = [Image.fromarray(frame) for frame in video.frames_at([last * step // 3 for step in range(4)]).intact()]
    width, height = _PREVIEW_SIZE
    canvas = Image.new("RGBA", _PREVIEW_SIZE)
    room = width // len(pictures)
    for place, picture in enumerate(pictures):
        fitted = ImageOps.contain(picture, (room - 6, height))
        canvas.paste(fitted, (place * room + (room - fitted.width) // 2, (height - fitted.height) // 2))
    return _png(canvas)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
