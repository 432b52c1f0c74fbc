"""Numbered placeholders to the text of pictures and videos, with the tiles that belong to it.

It promises that every placeholder is used exactly once, that tiles come in the order of their tokens, and the wording of
the given dialect. It neither loads media nor tokenises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from eagle_data.dialect import Dialect

from eagle_model.image_processing import Eagle2_5_VLImageProcessor, frame_sizes, to_picture


@dataclass(frozen=True)
class Media:
    """Loaded media of a batch of prompts, in order; `fps` and `timestamps` have one entry per video, None where unknown."""

    images: Sequence[Any]
    videos: Sequence[Any]
    fps: Sequence[float | None]
    timestamps: Sequence[Sequence[float] | None]
    image_options: Mapping[str, Any]
    video_options: Mapping[str, Any]


@dataclass(frozen=True)
class _Piece:
    """Text of one placeholder, the tiles it announces, and the (height, width) of its pictures."""

    text: str
    tiles: list[np.ndarray]
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class PromptExpander:
    """How placeholders become text: the image processor cuts, the dialect words, the placeholder names are the released keys."""

    image_processor: Eagle2_5_VLImageProcessor
    wording: Dialect
    tokens_per_tile: int
    image_placeholder: str = "image"
    video_placeholder: str = "video"

    def expand(self, prompts: Sequence[str], media: Media) -> tuple[list[str], list[np.ndarray], list[tuple[int, int]]]:
        """Prompts with every `<image-k>` and `<video-k>` replaced, the tiles and picture sizes in the order of the text.

        Numbers count from 1 within each prompt. Raises ValueError where a prompt does not name 1..n exactly once each, or
        the batch names more or fewer media than were given.
        """
        pattern = re.compile(f"<({re.escape(self.image_placeholder)}|{re.escape(self.video_placeholder)})-([0-9]+)>")
        found = [self._numbers(pattern, row, prompt) for row, prompt in enumerate(prompts)]
        for kind, given in (("image", media.images), ("video", media.videos)):
            wanted = sum(numbers[kind] for numbers in found)
            if wanted != len(given):
                raise ValueError(
                    f"the prompts mention {wanted} {kind}(s) but {len(given)} were given; make both from the same messages"
                )
        expanded: list[str] = []
        pieces: list[_Piece] = []
        first = {"image": 0, "video": 0}
        for prompt, numbers in zip(prompts, found, strict=True):
            expanded.append(pattern.sub(self._replacement(media, dict(first), numbers["image"], pieces), prompt))
            first = {kind: first[kind] + count for kind, count in numbers.items()}
        return expanded, [tile for piece in pieces for tile in piece.tiles], [size for piece in pieces for size in piece.sizes]

    def _kind(self, match: re.Match[str]) -> str:
        return "image" if match[1] == self.image_placeholder else "video"

    def _numbers(self, pattern: re.Pattern[str], row: int, prompt: str) -> dict[str, int]:
        numbers: dict[str, list[int]] = {"image": [], "video": []}
        for match in pattern.finditer(prompt):
            numbers[self._kind(match)].append(int(match[2]))
        for kind, named in numbers.items():
            if sorted(named) != list(range(1, len(named) + 1)):
                raise ValueError(
                    f"prompt {row} names {kind}s {named}; number them 1 to {len(named)} and mention each once "
                    f"(<{kind}-1>, <{kind}-2>, …)"
                )
        return {kind: len(named) for kind, named in numbers.items()}

    def _replacement(
        self, media: Media, first: Mapping[str, int], images_in_prompt: int, pieces: list[_Piece]
    ) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            kind, number = self._kind(match), int(match[2])
            index = first[kind] + number - 1
            piece = self._image(media, index, number, images_in_prompt) if kind == "image" else self._video(media, index, number)
            pieces.append(piece)
            return piece.text

        return replace

    def _image(self, media: Media, index: int, number: int, count: int) -> _Piece:
        picture = to_picture(media.images[index])
        tiles = self.image_processor.image_tiles(picture, **media.image_options)
        text = self.wording.image(number, len(tiles) * self.tokens_per_tile, count)
        return _Piece(text, [tiles], [(picture.height, picture.width)])

    def _video(self, media: Media, index: int, number: int) -> _Piece:
        frames = media.videos[index]
        tiles = self.image_processor.frame_tiles(frames, **media.video_options)
        tokens = [len(frame) * self.tokens_per_tile for frame in tiles]
        timestamps = media.timestamps[index]
        # The release marks frames without a time by -1 (and then prints it); both mean that no time is known.
        if timestamps is not None and any(time < 0 for time in timestamps):
            timestamps = None
        return _Piece(self.wording.video(number, media.fps[index], timestamps, tokens), tiles, frame_sizes(frames))
