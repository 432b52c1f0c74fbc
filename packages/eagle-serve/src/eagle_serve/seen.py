"""What the model saw: the tiles, frames, times and token counts of one prompt.

Everything is read off the model inputs themselves: token ids give the counts, `pixel_values` the pictures, and the times are
the ones that were handed to the processor. Not for choosing anything, and not for showing it (`seen_text`, `demo_panel`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from eagle_data.tiling import choose_grid, tiles_for

__all__ = ["LoadedMedia", "Seen", "SeenFrame", "SeenPicture", "SeenVideo", "read_seen"]


@dataclass(frozen=True)
class LoadedMedia:
    """One item as it went into the processor: for a video also how many frames, their rate and (if known) their seconds."""

    kind: Literal["image", "video"]
    name: str
    frames: int = 1
    fps: float | None = None
    timestamps: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class SeenPicture:
    """An image.

    Attributes:
        name: the file's name.
        width, height: pixels before tiling.
        grid: (columns, rows) of the tiles, thumbnail not counted.
        tiles: uint8 [tiles, side, side, 3], row by row, the thumbnail (if any) last.
        thumbnail: whether the last tile is the whole picture.
        tokens: context tokens of all its tiles.
    """

    name: str
    width: int
    height: int
    grid: tuple[int, int]
    tiles: np.ndarray
    thumbnail: bool
    tokens: int


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """A video frame: seconds as told to the model (None: no time), tiles uint8 [tiles, side, side, 3], context tokens."""

    timestamp: float | None
    tiles: np.ndarray
    tokens: int


@dataclass(frozen=True, eq=False)
class SeenVideo:
    """A video: its name, size in pixels, sampling rate in frames per second, and the frames in order."""

    name: str
    width: int
    height: int
    fps: float | None
    frames: tuple[SeenFrame, ...]

    @property
    def tokens(self) -> int:
        return sum(frame.tokens for frame in self.frames)


@dataclass(frozen=True, eq=False)
class Seen:
    """A prompt: its media in order, and its tokens. `text_tokens` counts all that are not context tokens of a tile."""

    media: tuple[SeenPicture | SeenVideo, ...]
    visual_tokens: int
    text_tokens: int
    context_length: int

    @property
    def total_tokens(self) -> int:
        return self.visual_tokens + self.text_tokens


def read_seen(
    processor: Any,
    inputs: Mapping[str, Any],
    media: Sequence[LoadedMedia],
    *,
    images_kwargs: Mapping[str, Any],
    context_length: int,
) -> Seen:
    """Read one prompt's model inputs.

    Args:
        processor: `Eagle2_5_VLProcessor` that made the inputs.
        inputs: its output for a single prompt, as torch tensors or arrays.
        media: what was given to it, in the order of the prompt.
        images_kwargs: tiling settings of that call.
        context_length: the model's.

    Raises:
        ValueError: inputs and media do not belong together.
    """
    ids = np.asarray(inputs["input_ids"])[0]
    runs = _context_runs(ids, processor)
    sizes = np.asarray(inputs["image_sizes"]) if media else np.empty((0, 2), int)
    if sum(item.frames for item in media) != len(runs) or len(sizes) != len(runs):
        raise ValueError(f"the prompt shows {len(runs)} pictures and frames, but {sum(item.frames for item in media)} were given")
    tiles = _pixels(processor, inputs["pixel_values"]) if media else np.empty((0, 1, 1, 3), np.uint8)
    shown: list[tuple[np.ndarray, int]] = []
    start = 0
    for tokens in runs:
        count = tokens // processor.tokens_per_tile
        shown.append((tiles[start : start + count], tokens))
        start += count
    if start != len(tiles):
        raise ValueError(f"the prompt has room for {start} tiles, but {len(tiles)} were given")

    seen: list[SeenPicture | SeenVideo] = []
    place = 0
    for item in media:
        height, width = (int(side) for side in sizes[place])
        if item.kind == "image":
            seen.append(_picture(processor, item.name, width, height, *shown[place], images_kwargs))
        else:
            times = item.timestamps or (None,) * item.frames
            frames = zip(times, shown[place : place + item.frames], strict=True)
            seen.append(SeenVideo(item.name, width, height, item.fps, tuple(SeenFrame(time, *frame) for time, frame in frames)))
        place += item.frames
    return Seen(tuple(seen), sum(runs), len(ids) - sum(runs), context_length)


def _picture(
    processor: Any, name: str, width: int, height: int, tiles: np.ndarray, tokens: int, images_kwargs: Mapping[str, Any]
) -> SeenPicture:
    settings = processor.image_processor.tiling(**images_kwargs)
    # The processor returns tiles without their grid; its own settings and function name it, the tiles it made confirm it.
    grid = choose_grid(
        width,
        height,
        tile_size=processor.image_processor.tile_size,
        min_tiles=settings["min_dynamic_tiles"],
        max_tiles=settings["max_dynamic_tiles"],
    )
    if tiles_for(grid, settings["use_thumbnail"]) != len(tiles):
        raise ValueError(f"{name}: {len(tiles)} tiles were made, which a grid of {grid[0]} x {grid[1]} does not give")
    return SeenPicture(name, width, height, grid, tiles, len(tiles) > grid[0] * grid[1], tokens)


def _context_runs(ids: np.ndarray, processor: Any) -> list[int]:
    """Lengths of the unbroken runs of context tokens, in order: one run per picture or frame."""
    context = np.concatenate(([0], (ids == processor.image_token_id).astype(np.int8), [0]))
    edges = np.diff(context)
    return [int(length) for length in np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)]


def _pixels(processor: Any, pixel_values: Any) -> np.ndarray:
    """Normalised [tiles, 3, side, side] back to uint8 [tiles, side, side, 3]."""
    values = np.asarray(pixel_values, dtype=np.float32).transpose(0, 2, 3, 1)
    values = values * np.float32(processor.image_processor.image_std) + np.float32(processor.image_processor.image_mean)
    return (values * 255).round().clip(0, 255).astype(np.uint8)
