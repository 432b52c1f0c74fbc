"""Automatic Degradation Sampling: which frames and how many tiles fit a context length, with all text kept.

The paper's two phases (section 3.2.1, Eq. 2): frames first, at one tile per image, up to `fps` frames a second; then
the largest tile count, one for all images, that fits in what is left. Unlike the paper's formula every wrapper token
(`Frame i sample at t s:`, `<img>`, `</img>`) is charged, by tokenising the very prompt that will be used, so a plan
never exceeds the context. Nothing is decoded here: the inputs are sizes and durations.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, Dialect
from eagle_data.errors import SampleError
from eagle_data.samples import Sample
from eagle_data.sampling import FrameChoice, uniform
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata


@dataclass(frozen=True)
class VisualRules:
    """How pictures become tokens, and the limits of degradation.

    `tile_size` in pixels; `tokens_per_tile` after pixel shuffle; `tile_steps` are the tile counts tried in the second
    phase (those above `max_tiles` are left out, `max_tiles` itself is always tried); `fps` in frames per second is
    the wish for videos; a video gets `min_frames` or the sample is rejected, fewer only where its file has fewer.
    """

    tile_size: int = 448
    tokens_per_tile: int = 256
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True
    tile_steps: tuple[int, ...] = (12, 8, 6, 4, 2, 1)
    fps: float = 2.0
    min_frames: int = 8
    dialect: Dialect = field(default=RELEASED)


@dataclass(frozen=True)
class ImagePlan:
    """`grid` is (columns, rows); `tiles` counts the thumbnail."""

    grid: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class VisualPlan:
    """What of a sample's media is shown: one entry per image and per video, in their numbering.

    `length` is the exact token count of the whole sample; `tiles` the number of tiles and frames to encode;
    `degraded` names what was given up: "frames", "tiles" or both.
    """

    images: tuple[ImagePlan, ...]
    videos: tuple[FrameChoice, ...]
    max_tiles: int
    tiles: int
    length: int
    degraded: tuple[str, ...]


def segments_of(
    sample: Sample, images: Sequence[ImagePlan], videos: Sequence[FrameChoice], rules: VisualRules, *, tokens_per_tile: int | None = None
) -> list[Segment]:
    """The rendered prompt of a sample under a plan; `tokens_per_tile=0` renders the wrappers alone."""
    tokens = rules.tokens_per_tile if tokens_per_tile is None else tokens_per_tile

    def media(kind: str, k: int) -> str:
        if kind == "image":
            return rules.dialect.image(k, images[k - 1].tiles * tokens, len(images))
        choice = videos[k - 1]
        return rules.dialect.video(k, choice.fps, choice.timestamps, [tokens] * len(choice.indices))

    return render(sample.messages, default_system=rules.dialect.default_system, media=media)


def plan(
    sample: Sample,
    *,
    image_sizes: Sequence[tuple[int, int]],
    video_infos: Sequence[VideoMetadata],
    context_length: int,
    rules: VisualRules,
    tokenizer: PromptTokenizer,
) -> VisualPlan:
    """Fit one sample into `context_length` tokens.

    `image_sizes` are (width, height) in pixels, `video_infos` the metadata of each video or clip. Raises SampleError
    where the text alone, or the text with the least visual content, does not fit; text is never cut.
    """
    wishes = [wished_frames(info, rules) for info in video_infos]
    floors = [min(rules.min_frames, info.frames) for info in video_infos]
    least = tuple(_image_plan(size, 1, rules) for size in image_sizes)

    def measure(frames: Sequence[int], images: Sequence[ImagePlan]) -> tuple[int, tuple[FrameChoice, ...]]:
        choices = tuple(
            uniform(info.frames, info.fps, n) for info, n in zip(video_infos, frames, strict=True)
        )
        ids, _ = tokenizer.encode(segments_of(sample, images, choices, rules, tokens_per_tile=0))
        pictures = sum(frames) + sum(image.tiles for image in images)
        return len(ids) + pictures * rules.tokens_per_tile, choices

    shortest, _ = measure(floors, least)
    if shortest > context_length:
        raise SampleError(
            sample.where,
            f"the sample needs {shortest} tokens with all its text, one tile per image and {sum(floors)} frames, "
            f"but the context length is {context_length}; raise context_length or shorten the conversation",
        )

    shares = frame_shares(wishes, floors)
    low, high = 0, len(shares) - 1  # frames of shares[low] fit; the largest fitting step is sought
    while low < high:
        middle = (low + high + 1) // 2
        if measure(shares[middle], least)[0] <= context_length:
            low = middle
        else:
            high = middle - 1
    frames = shares[low]

    images, max_tiles = least, 1
    for t in tile_steps(rules):
        candidate = tuple(_image_plan(size, t, rules) for size in image_sizes)
        if measure(frames, candidate)[0] <= context_length:
            images, max_tiles = candidate, t
            break
    length, choices = measure(frames, images)
    degraded = []
    if list(frames) != wishes:
        degraded.append("frames")
    if images != tuple(_image_plan(size, rules.max_tiles, rules) for size in image_sizes):
        degraded.append("tiles")
    tiles = sum(frames) + sum(image.tiles for image in images)
    return VisualPlan(images, choices, max_tiles, tiles, length, tuple(degraded))


def wished_frames(info: VideoMetadata, rules: VisualRules) -> int:
    """Frames wanted of a video: `fps` a second, at least `min_frames`, at most what the file has (paper: N_max)."""
    return min(info.frames, max(rules.min_frames, int(info.duration * rules.fps + 1e-6)))


def tile_steps(rules: VisualRules) -> tuple[int, ...]:
    """Tile counts to try, largest first."""
    return tuple(sorted({rules.max_tiles, *(t for t in rules.tile_steps if t < rules.max_tiles), 1}, reverse=True))


def frame_shares(wishes: Sequence[int], floors: Sequence[int]) -> list[tuple[int, ...]]:
    """Every step from `floors` to `wishes`, one frame more each, shared in proportion to the wishes.

    The next frame goes to the video whose wish per frame held is the largest (D'Hondt), which makes the share of each
    video grow with the budget and never shrink; the paper leaves several videos open (eagle25-paper.md, point a).
    """
    frames = list(floors)
    steps = [tuple(frames)]
    heap = [(-wish / (n + 1), i) for i, (wish, n) in enumerate(zip(wishes, frames, strict=True)) if n < wish]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        frames[i] += 1
        steps.append(tuple(frames))
        if frames[i] < wishes[i]:
            heapq.heappush(heap, (-wishes[i] / (frames[i] + 1), i))
    return steps


def _image_plan(size: tuple[int, int], max_tiles: int, rules: VisualRules) -> ImagePlan:
    grid = choose_grid(
        *size, tile_size=rules.tile_size, min_tiles=min(rules.min_tiles, max_tiles), max_tiles=max_tiles
    )
    return ImagePlan(grid, tiles_for(grid, rules.use_thumbnail))
