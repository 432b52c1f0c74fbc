"""Chat messages to model inputs, once: the inputs that feed the model and the record of what they show.

It promises that a prompt fits the context length, and that `Seen` describes these very inputs. The wording, the tiling and
the choice of frames are eagle-model's and eagle-data's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from eagle_data.errors import MediaError

from eagle_serve.conversation import named
from eagle_serve.errors import ContextOverflowError
from eagle_serve.loading import Checkpoint
from eagle_serve.seen import LoadedMedia, Seen, read_seen

__all__ = ["Prompt", "VisualSettings", "prepare"]


@dataclass(frozen=True)
class VisualSettings:
    """How media are shown. None leaves a setting to the checkpoint and the released policy.

    Attributes:
        max_tiles: most tiles of an image, thumbnail not counted.
        fps: frames sampled per second of video (released policy: 2).
        max_frames: most frames of a video (released policy: 256).
    """

    max_tiles: int | None = None
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """Model inputs of one conversation (the processor's output, batch of 1, on the CPU) and what they show."""

    inputs: Any
    seen: Seen

    @property
    def tokens(self) -> int:
        return self.seen.total_tokens


def prepare(checkpoint: Checkpoint, messages: Sequence[Mapping[str, Any]], visual: VisualSettings | None = None) -> Prompt:
    """Load the media of a conversation and make model inputs.

    Args:
        checkpoint: whose processor is used.
        messages: chat messages as transformers takes them. Items with media may carry a `name` for errors and reports; a video
            item's own `fps`, `nframes` and `max_frames` win over `visual`.
        visual: see `VisualSettings`.

    Raises:
        MediaError: an image or video that cannot be read, by its name.
        ContextOverflowError: no token is left for an answer.
        ValueError: from the processor, for malformed messages.
    """
    visual = visual or VisualSettings()
    processor = checkpoint.processor
    messages = [_with_sampling(message, visual) for message in messages]
    media: list[LoadedMedia] = []
    images: list[Any] = []
    videos: list[Any] = []
    for item in _media_items(messages):
        name = _name(item, len(media) + 1)
        try:
            # One item at a time, so that an error can name it.
            one, clip, about = processor.process_vision_info([{"role": "user", "content": [item]}], return_video_kwargs=True)
        except MediaError as error:
            raise named(error, name) from error
        if one:
            images += one
            media.append(LoadedMedia("image", name))
        if clip:
            videos += clip
            times = about["timestamps"][0]
            fps = about["fps"][0]
            media.append(LoadedMedia("video", name, len(clip[0]), fps, None if times is None else tuple(times)))
    clips = [item for item in media if item.kind == "video"]
    images_kwargs = {} if visual.max_tiles is None else {"max_dynamic_tiles": visual.max_tiles}
    inputs = processor(
        text=processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        images=images or None,
        videos=videos or None,
        images_kwargs=images_kwargs,
        videos_kwargs={"fps": [clip.fps for clip in clips], "timestamps": [clip.timestamps for clip in clips]} if clips else None,
        return_tensors="pt",
    )
    seen = read_seen(processor, inputs, media, images_kwargs=images_kwargs, context_length=checkpoint.context_length)
    if seen.total_tokens >= checkpoint.context_length:
        raise ContextOverflowError(seen.visual_tokens, seen.text_tokens, checkpoint.context_length)
    return Prompt(inputs, seen)


def _with_sampling(message: Mapping[str, Any], visual: VisualSettings) -> Mapping[str, Any]:
    if isinstance(message["content"], str):
        return message
    wanted = {"fps": visual.fps, "max_frames": visual.max_frames}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    content = [
        {**wanted, **item} if isinstance(item, Mapping) and "video" in item and "nframes" not in item else item
        for item in message["content"]
    ]
    return {**message, "content": content}


def _media_items(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    from eagle_model.vision_info import media_items

    return list(media_items(messages))


def _name(item: Mapping[str, Any], number: int) -> str:
    if item.get("name"):
        return str(item["name"])
    for key in ("image", "video", "image_url", "url", "path"):
        source = item.get(key)
        if isinstance(source, (str, PurePath)) and not str(source).startswith("data:"):
            return PurePath(source).name
    return f"media {number}"
