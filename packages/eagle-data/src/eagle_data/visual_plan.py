"""What Automatic Degradation Sampling decides by and what it decides: the rules, a sample's plan, and the prompt of a plan.

Values only; `eagle_data.ads` makes plans, `eagle_data.encode` turns them into token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, Dialect
from eagle_data.errors import EagleDataError
from eagle_data.samples import Sample
from eagle_data.sampling import FrameChoice


@dataclass(frozen=True)
class VisualRules:
    """How pictures become tokens, and the limits of degradation.

    `tile_size` in pixels; `tokens_per_tile` after pixel shuffle; `tile_steps` are the tile counts tried in the second
    phase (those above `max_tiles` are left out, `max_tiles` itself is always tried); `fps` in frames per second is
    the wish for videos; a video or document gets `min_frames` frames or pages, or the sample is rejected, fewer only where
    it has fewer. With `tile_pages` the pages of documents are tiled as images are once all of them are shown; without it a
    page is always one tile, as in the paper. Raises EagleDataError for values that cannot be.
    """

    tile_size: int = 448
    tokens_per_tile: int = 256
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    tile_steps: tuple[int, ...] = (12, 8, 6, 4, 2, 1)
    fps: float = 2.0
    min_frames: int = 8
    tile_pages: bool = True
    dialect: Dialect = field(default=RELEASED)

    def __post_init__(self) -> None:
        for name in ("tile_size", "tokens_per_tile", "min_tiles", "max_tiles", "min_frames"):
            if getattr(self, name) < 1:
                raise EagleDataError(f"{name}={getattr(self, name)}: must be at least 1.")
        if self.min_tiles > self.max_tiles:
            raise EagleDataError(f"min_tiles={self.min_tiles} is above max_tiles={self.max_tiles}: lower it, or raise max_tiles.")
        for step in self.tile_steps:
            if not isinstance(step, int) or isinstance(step, bool) or step < 1:
                raise EagleDataError(f"tile_steps has {step!r}: tile counts are whole numbers of at least 1.")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise EagleDataError(f"fps={self.fps}: the wished rate must be positive and finite.")


@dataclass(frozen=True)
class ImagePlan:
    """`grid` is (columns, rows); `tiles` counts the thumbnail."""

    grid: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class VideoPlan:
    """`frames` chosen of one video or clip, whose own `duration` is in seconds."""

    frames: FrameChoice
    duration: float


@dataclass(frozen=True)
class DocumentPlan:
    """The pages shown of one document: `indices` into `DocumentRef.pages`, ascending, and one of `images` for each."""

    indices: tuple[int, ...]
    images: tuple[ImagePlan, ...]


@dataclass(frozen=True)
class VisualPlan:
    """What of a sample's media is shown: one entry per image, video and document, in their numbering.

    `length` is the exact token count of the whole sample; `tiles` the number of tiles and frames to encode; `degraded` names what
    was given up: "frames" (of videos, and pages), "tiles" or both. `image_tiles` counts the tiles of images, and of pages where
    pages are tiled; `wished_tiles` and `wished_frames` (frames and pages) are what an endless context would show.
    """

    images: tuple[ImagePlan, ...]
    videos: tuple[VideoPlan, ...]
    max_tiles: int
    tiles: int
    length: int
    degraded: tuple[str, ...]
    documents: tuple[DocumentPlan, ...] = ()
    image_tiles: int = 0
    wished_tiles: int = 0
    wished_frames: int = 0

    @property
    def frames(self) -> int:
        """Frames and pages shown, of all videos and documents."""
        return sum(len(video.frames) for video in self.videos) + sum(len(document.indices) for document in self.documents)

    @property
    def record(self) -> tuple[str, ...]:
        """`degraded` with what is shown of what was wished: ("frames 120/1200", "tiles 20/52")."""
        shown = {"frames": (self.frames, self.wished_frames), "tiles": (self.image_tiles, self.wished_tiles)}
        return tuple(f"{name} {shown[name][0]}/{shown[name][1]}" for name in self.degraded)


def segments_of(
    sample: Sample,
    images: Sequence[ImagePlan],
    videos: Sequence[VideoPlan],
    rules: VisualRules,
    *,
    documents: Sequence[DocumentPlan] = (),
) -> list[Segment]:
    """The rendered prompt of a sample under a plan.

    The pages shown of a document stand one after another as images; their numbers go on where the sample's own images end, in the
    order of the documents' numbers.
    """
    tokens = rules.tokens_per_tile
    numbers = page_numbers(len(images), [len(document.indices) for document in documents])
    count = len(images) + sum(len(document.indices) for document in documents)

    def media(kind: str, k: int) -> str:
        if kind == "image":
            return rules.dialect.image(k, images[k - 1].tiles * tokens, count)
        if kind == "document":
            pages = zip(numbers[k - 1], documents[k - 1].images, strict=True)
            return "".join(rules.dialect.image(number, page.tiles * tokens, count) for number, page in pages)
        frames, duration = videos[k - 1].frames, videos[k - 1].duration
        return rules.dialect.video(k, frames.fps, frames.timestamps, [tokens] * len(frames), duration)

    return render(sample.messages, default_system=rules.dialect.default_system, media=media)


def page_numbers(images: int, pages: Sequence[int]) -> list[range]:
    """The image numbers of every document's shown pages, behind those of `images` images."""
    numbers, first = [], images + 1
    for count in pages:
        numbers.append(range(first, first + count))
        first += count
    return numbers
