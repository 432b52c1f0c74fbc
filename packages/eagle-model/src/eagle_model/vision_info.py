"""Chat messages to pictures and frames: which media a conversation mentions, loaded and sampled as released.

It promises the released frame choice (upstream section 2.4) and the order in which media appear. Decoding is
eagle_data's; it loads its video reader on first use. Nothing here knows of tiles or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eagle_model.image_processing import to_picture

Message = Mapping[str, Any]
Frames = "np.ndarray | list[Image.Image]"

_FRAME_LIST_FPS = 2.0


def media_items(conversations: Sequence[Message] | Sequence[Sequence[Message]]) -> Iterator[Mapping[str, Any]]:
    """Content items that carry an image or a video, in order, over one conversation or several."""
    for conversation in as_conversations(conversations):
        for message in conversation:
            content = message["content"]
            if isinstance(content, str):
                continue
            for item in content:
                if isinstance(item, Mapping) and kind_of(item) is not None:
                    yield item


def as_conversations(conversations: Sequence[Any]) -> list[Sequence[Message]]:
    """One conversation (a list of messages) or several, as a list of conversations."""
    if len(conversations) == 0:
        raise ValueError("the conversation is empty; give at least one message")
    return [conversations] if isinstance(conversations[0], Mapping) else list(conversations)


def kind_of(item: Mapping[str, Any]) -> str | None:
    """`image`, `video` or None for a content item, by its type or the key it carries."""
    if "image" in item or "image_url" in item or item.get("type") in ("image", "image_url"):
        return "image"
    if "video" in item or item.get("type") == "video":
        return "video"
    return None


def load_image_item(item: Mapping[str, Any]) -> Image.Image:
    """The picture of an image item, RGB.

    Reads `image` or `image_url` (also `{"url": …}`): path, http(s), file or data URL, bytes, PIL or array. An integer
    `scale_factor` enlarges it with bilinear filtering, as released.
    """
    source = item.get("image", item.get("image_url", item.get("url", item.get("path"))))
    if isinstance(source, Mapping) and "url" in source:
        source = source["url"]
    if source is None:
        raise ValueError(f"an image item has no picture: {dict(item)}; give 'image' or 'image_url'")
    picture = to_picture(source)
    factor = item.get("scale_factor")
    if factor is None:
        return picture
    return picture.resize((int(picture.width * factor), int(picture.height * factor)), Image.Resampling.BILINEAR)


def load_video_item(item: Mapping[str, Any], *, default_fps: float | None = None) -> tuple[Any, float, list[float] | None]:
    """Frames of a video item, the rate printed in the prompt, and a time per frame.

    Args:
        item: `video` is a file (path, file or http(s) URL, bytes, folder of pictures) or a list of pictures. For files: `fps`
            (default 2.0) with `min_frames` (4) and `max_frames` (256), or `nframes`; `video_start` and `video_end` in seconds.
            A URL is fetched by ranges, within the default bounds of `eagle_data.Fetch`.
        default_fps: the rate for files whose item has neither `fps` nor `nframes`; None means 2.0.

    Returns:
        frames uint8 [n, height, width, 3] or a list of pictures; frames per second; seconds of each frame. A list of
        pictures has no times (upstream prints "-1.00s"); an odd one repeats its last picture, as released.

    Raises:
        ValueError: both `fps` and `nframes`, a video too short for two frames, or one that cannot be read or fetched.
    """
    from eagle_data.fetch import Fetch, is_address
    from eagle_data.sampling import released_policy
    from eagle_data.video import open_video

    source = item.get("video", item.get("url", item.get("path")))
    if source is None:
        raise ValueError(f"a video item has no video: {dict(item)}; give 'video'")
    if isinstance(source, (list, tuple)):
        pictures = [load_image_item({**item, "image": picture}) for picture in source]
        if not pictures:
            raise ValueError("a video given as a list of pictures is empty")
        pictures += pictures[-1:] * (len(pictures) % 2)
        return pictures, float(item.get("fps", _FRAME_LIST_FPS)), None
    if "fps" in item and "nframes" in item:
        raise ValueError("a video item takes either 'fps' or 'nframes', not both")
    start, end = item.get("video_start"), item.get("video_end")
    if not isinstance(source, bytes) and not is_address(source := str(source)):
        source = Path(source.removeprefix("file://"))
    # Leave as for pictures: whoever writes an address into a message asks for it to be fetched.
    with open_video(source, start=start, end=end, fetch=Fetch()) as video:
        options = {key: item[key] for key in ("fps", "nframes", "min_frames", "max_frames") if item.get(key) is not None}
        if default_fps is not None and not options.keys() & {"fps", "nframes"}:
            options["fps"] = default_fps
        choice = released_policy(video.metadata.frames, video.metadata.fps, start=start or 0.0, **options)
        return video.frames_at(choice.indices).intact(), choice.fps, list(choice.timestamps)
