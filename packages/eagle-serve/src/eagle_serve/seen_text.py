"""`Seen` as a few lines of text, for a terminal. The page draws it instead (`demo_panel`)."""

from __future__ import annotations

from collections.abc import Iterator

from eagle_serve.seen import Seen, SeenPicture, SeenVideo

__all__ = ["picture_line", "seen_lines", "token_line", "video_line"]

_SHOWN_TIMES = 8


def seen_lines(seen: Seen) -> Iterator[str]:
    """One line per image or video, in order, then the token counts."""
    for number, item in enumerate(seen.media, 1):
        line = picture_line(item) if isinstance(item, SeenPicture) else video_line(item)
        yield f"{number}. {item.name}: {line}"
    yield token_line(seen)


def picture_line(picture: SeenPicture) -> str:
    """Size, grid (columns × rows) and tokens of an image."""
    columns, rows = picture.grid
    count = columns * rows
    tiles = f"{columns} × {rows} tiles" if count > 1 else "1 tile"
    thumbnail = " + thumbnail" if picture.thumbnail else ""
    return f"{picture.width} × {picture.height} pixels, {tiles}{thumbnail}, {picture.tokens} tokens"


def video_line(video: SeenVideo, *, seconds: bool = True) -> str:
    """Size, frames (with the `seconds` of the first and last few) and tokens of a video."""
    times = [frame.timestamp for frame in video.frames if frame.timestamp is not None and seconds]
    line = f"{video.width} × {video.height} pixels, {len(video.frames)} frames"
    if video.fps is not None:
        line += f" at {video.fps:.2f} fps"
    if times:
        stamps = [f"{time:.2f}" for time in times]
        if len(stamps) > _SHOWN_TIMES:
            half = _SHOWN_TIMES // 2
            stamps = [*stamps[:half], "…", *stamps[-half:]]
        line += f" ({', '.join(stamps)} s)"
    return f"{line}, {video.tokens} tokens"


def token_line(seen: Seen) -> str:
    """Visual, text and total tokens against the context length."""
    return (
        f"{seen.total_tokens} tokens: {seen.visual_tokens} visual + {seen.text_tokens} text, "
        f"of {seen.context_length} in the context"
    )
