"""A conversation as values: turns of text with images and videos, and the chat messages they make.

It promises that text can never pose as the prompt's own structure: a question that spells a turn marker or a picture's
placeholder is refused, an answer that does is defused. Loads no torch; decodes media only to check them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from eagle_data.errors import MediaError
from eagle_data.images import load_image
from eagle_data.video import probe_video
from PIL import Image, UnidentifiedImageError

from eagle_serve.errors import PromptError

__all__ = ["Media", "Turn", "check_media", "media_from_bytes", "media_from_file", "named", "to_messages"]

Kind: TypeAlias = Literal["image", "video"]

# Turn markers of ChatML, the tokens around and inside a picture, and the numbered placeholders of the chat template.
_STRUCTURE = re.compile(r"<\|(?:im_start|im_end|endoftext)\|>|</?img>|<IMG_CONTEXT>|<(?:image|video)-\d+>")


@dataclass(frozen=True)
class Media:
    """An image or a video of a turn.

    Attributes:
        kind: `image` or `video`.
        source: path, encoded bytes, or (images only) a Pillow picture.
        name: how errors and reports call it.
    """

    kind: Kind
    source: str | Path | bytes | Image.Image
    name: str


@dataclass(frozen=True)
class Turn:
    """What one side said. Media come before the text; `stopped` marks an answer that was cut short on request."""

    role: Literal["user", "assistant"]
    text: str
    media: tuple[Media, ...] = ()
    stopped: bool = False


def media_from_file(path: str | Path, kind: Kind | None = None) -> Media:
    """A file as media, checked by decoding (an image whole, of a video the index).

    `kind` None looks inside: a still picture is an image, everything else (animated GIF and WebP too) a video.
    Raises MediaError for a missing, truncated or unknown file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MediaError(str(path), "no such file" if not path.exists() else "is not a file", "Check the path")
    media = Media(kind or _kind_inside(path), path, path.name)
    check_media(media)
    return media


def media_from_bytes(name: str, data: bytes, kind: Kind | None = None) -> Media:
    """An uploaded file as media; nothing is written to disk. Kinds, checks and errors as in `media_from_file`."""
    media = Media(kind or _kind_inside(io.BytesIO(data)), data, name)
    check_media(media)
    return media


def check_media(media: Media) -> None:
    """Raise MediaError, with the media's own name, unless it can be decoded."""
    try:
        if media.kind == "image":
            load_image(media.source)
        elif isinstance(media.source, Image.Image):
            raise MediaError(media.name, "is a picture, not a video", "Attach it as an image")
        else:
            frames = probe_video(media.source).frames
            if frames < 2:
                raise MediaError(media.name, f"is a video of {frames} frame", "Attach a longer video, or the picture as an image")
    except MediaError as error:
        raise named(error, media.name) from error


def named(error: MediaError, name: str) -> MediaError:
    """The same error under the name that the user knows, where its own is only `<n bytes>`."""
    return MediaError(name, error.reason, error.mend) if error.source.startswith("<") else error


def to_messages(turns: Sequence[Turn], system: str = "") -> list[dict[str, Any]]:
    """Chat messages for the processor; an empty `system` means the checkpoint's default system turn.

    Raises PromptError for an empty question and for text that contains structural tokens.
    """
    messages: list[dict[str, Any]] = []
    if system.strip():
        messages.append({"role": "system", "content": _refused(system.strip(), "the system prompt")})
    for turn in turns:
        if turn.role == "assistant":
            messages.append({"role": "assistant", "content": _STRUCTURE.sub(lambda match: "< " + match[0][1:], turn.text)})
            continue
        content: list[dict[str, Any]] = [{"type": m.kind, m.kind: m.source, "name": m.name} for m in turn.media]
        if turn.text:
            content.append({"type": "text", "text": _refused(turn.text, "the question")})
        if not content:
            raise PromptError("the question is empty; write something or attach a picture")
        messages.append({"role": "user", "content": content})
    return messages


def _refused(text: str, where: str) -> str:
    found = _STRUCTURE.search(text)
    if found:
        raise PromptError(
            f"{where} contains {found[0]!r}, which has a meaning of its own in the prompt; write it with a space, "
            f"{'< ' + found[0][1:]!r}"
        )
    return text


def _kind_inside(file: Path | io.BytesIO) -> Kind:
    try:
        with Image.open(file) as picture:
            return "video" if getattr(picture, "n_frames", 1) > 1 else "image"
    except UnidentifiedImageError:
        return "video"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        # A picture, but a damaged one: decoding it as such gives the better error.
        return "image"
