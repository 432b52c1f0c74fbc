"""Automatic Degradation Sampling: which frames and how many tiles fit a context length, with all text kept.

The paper's two phases (section 3.2.1, Eq. 2): frames first, at one tile per image, up to `fps` frames a second; then
the largest tile count, one for all images, that fits in what is left. Unlike the paper's formula every wrapper token
(`Frame i sample at t s:`, `<img>`, `</img>`) is charged, by tokenising the very prompt that will be used, so a plan
never exceeds the context. Nothing is decoded here: the inputs are sizes and durations.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, Dialect
from eagle_data.errors import EagleDataError, SampleError
from eagle_data.samples import Sample
from eagle_data.sampling import FrameChoice, uniform
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata

TOO_LONG = "too long"


@dataclass(frozen=True)
class VisualRules:
    """How pictures become tokens, and the limits of degradation.

    `tile_size` in pixels; `tokens_per_tile` after pixel shuffle; `tile_steps` are the tile counts tried in the second
    phase (those above `max_tiles` are left out, `max_tiles` itself is always tried); `fps` in frames per second is
    the wish for videos; a video gets `min_frames` or the sample is rejected, fewer only where its file has fewer.
    Raises EagleDataError for values that cannot be.
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

    def __post_init__(self) -> None:
        for name in ("tile_size", "tokens_per_tile", "min_tiles", "max_tiles", "min_frames"):
            if getattr(self, name) < 1:
                raise EagleDataError(f"{name}={getattr(self, name)}: must be at least 1.")
        if not self.fps > 0:
            raise EagleDataError(f"fps={self.fps}: the wished rate must be positive.")


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
class VisualPlan:
    """What of a sample's media is shown: one entry per image and per video, in their numbering.

    `length` is the exact token count of the whole sample; `tiles` the number of tiles and frames to encode;
    `degraded` names what was given up: "frames", "tiles" or both.
    """

    images: tuple[ImagePlan, ...]
    videos: tuple[VideoPlan, ...]
    max_tiles: int
    tiles: int
    length: int
    degraded: tuple[str, ...]


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

    `image_sizes` are (width, height) in pixels, `video_infos` the metadata of each video or clip. One frame more than
    the plan has would not fit, nor would the next larger tile count. Raises SampleError where the text alone, or the
    text with the least visual content, does not fit; text is never cut.
    """
    if len(image_sizes) != len(sample.images) or len(video_infos) != len(sample.videos):
        raise ValueError(
            f"{sample.where}: {len(sample.images)} images and {len(sample.videos)} videos, but sizes of {len(image_sizes)} and "
            f"metadata of {len(video_infos)} were given; give one for each"
        )
    task = _Task(sample, image_sizes, video_infos, rules, tokenizer)
    wishes = tuple(wished_frames(info, rules) for info in video_infos)
    floors = tuple(min(rules.min_frames, info.frames) for info in video_infos)
    least = task.images(1)
    shortest = task.length(floors, least)
    if shortest > context_length:
        raise SampleError(
            sample.where,
            f"the sample needs {shortest} tokens with all its text, one tile per image and {sum(floors)} frames, "
            f"but the context length is {context_length}; raise context_length or shorten the conversation",
            TOO_LONG,
        )
    shares = frame_shares(wishes, floors, most=context_length // rules.tokens_per_tile)

    def fits(step: int) -> bool:
        return step < len(shares) and task.length(shares[step], least) <= context_length

    # The range searched does not depend on the context, so that more context never means fewer frames, even though
    # the cost of timestamps is not quite monotone in the number of frames.
    frames = shares[_last_true(fits, sum(wishes) - sum(floors))]
    images, max_tiles = least, 1
    for t in tile_steps(rules):
        candidate = task.images(t)
        if task.length(frames, candidate) <= context_length:
            images, max_tiles = candidate, t
            break
    given_up = (("frames", frames != wishes), ("tiles", images != task.images(rules.max_tiles)))
    return VisualPlan(
        images=images,
        videos=task.videos(frames),
        max_tiles=max_tiles,
        tiles=sum(frames) + sum(image.tiles for image in images),
        length=task.length(frames, images),
        degraded=tuple(name for name, true in given_up if true),
    )


def segments_of(
    sample: Sample,
    images: Sequence[ImagePlan],
    videos: Sequence[VideoPlan],
    rules: VisualRules,
    *,
    tokens_per_tile: int | None = None,
) -> list[Segment]:
    """The rendered prompt of a sample under a plan; `tokens_per_tile=0` renders the wrappers alone."""
    tokens = rules.tokens_per_tile if tokens_per_tile is None else tokens_per_tile

    def media(kind: str, k: int) -> str:
        if kind == "image":
            return rules.dialect.image(k, images[k - 1].tiles * tokens, len(images))
        frames, duration = videos[k - 1].frames, videos[k - 1].duration
        return rules.dialect.video(k, frames.fps, frames.timestamps, [tokens] * len(frames), duration)

    return render(sample.messages, default_system=rules.dialect.default_system, media=media)


def wished_frames(info: VideoMetadata, rules: VisualRules) -> int:
    """Frames wanted of a video: `fps` a second, at least `min_frames`, at most what the file has (paper: N_max)."""
    return min(info.frames, max(rules.min_frames, int(info.duration * rules.fps + 1e-6)))


def tile_steps(rules: VisualRules) -> tuple[int, ...]:
    """Tile counts to try, largest first."""
    return tuple(sorted({rules.max_tiles, *(t for t in rules.tile_steps if t < rules.max_tiles), 1}, reverse=True))


def frame_shares(wishes: Sequence[int], floors: Sequence[int], *, most: int | None = None) -> list[tuple[int, ...]]:
    """Every step from `floors` to `wishes`, one frame more each, shared in proportion to the wishes.

    The next frame goes to the video whose wish per frame held is the largest (D'Hondt), which makes the share of each
    video grow with the budget and never shrink; the paper leaves several videos open. Steps of more than `most` frames
    in all are left out.
    """
    frames = list(floors)
    steps = [tuple(frames)]
    heap = [(-wish / (n + 1), i) for i, (wish, n) in enumerate(zip(wishes, frames, strict=True)) if n < wish]
    heapq.heapify(heap)
    total = sum(frames)
    while heap and (most is None or total < most):
        _, i = heapq.heappop(heap)
        frames[i] += 1
        total += 1
        steps.append(tuple(frames))
        if frames[i] < wishes[i]:
            heapq.heappush(heap, (-wishes[i] / (frames[i] + 1), i))
    return steps


@dataclass(frozen=True)
class _Task:
    """One sample to be planned: what a choice of frames and grids would cost."""

    sample: Sample
    sizes: Sequence[tuple[int, int]]
    infos: Sequence[VideoMetadata]
    rules: VisualRules
    tokenizer: PromptTokenizer

    def images(self, max_tiles: int) -> tuple[ImagePlan, ...]:
        rules = self.rules
        grids = [
            choose_grid(*size, tile_size=rules.tile_size, min_tiles=min(rules.min_tiles, max_tiles), max_tiles=max_tiles)
            for size in self.sizes
        ]
        return tuple(ImagePlan(grid, tiles_for(grid, rules.use_thumbnail)) for grid in grids)

    def videos(self, frames: Sequence[int]) -> tuple[VideoPlan, ...]:
        # Timestamps stand on the file's clock, start + index / fps, as the released policy prints them (upstream 2.4).
        return tuple(
            VideoPlan(uniform(info.frames, info.fps, n, start=ref.start or 0.0), info.duration)
            for ref, info, n in zip(self.sample.videos, self.infos, frames, strict=True)
        )

    def length(self, frames: Sequence[int], images: Sequence[ImagePlan]) -> int:
        """Tokens of the whole sample, exactly."""
        ids, _ = self.tokenizer.encode(segments_of(self.sample, images, self.videos(frames), self.rules, tokens_per_tile=0))
        return len(ids) + (sum(frames) + sum(image.tiles for image in images)) * self.rules.tokens_per_tile


def _last_true(test: Callable[[int], bool], high: int) -> int:
    """A step that passes while the next one fails, by bisection; `high` if it passes. Step 0 is taken to pass."""
    if test(high):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if test(middle):
            low = middle
        else:
            high = middle
    return low
