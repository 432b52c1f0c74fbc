"""Automatic Degradation Sampling: which frames and pages and how many tiles fit a context length, with all text kept.

The paper's two phases (section 3.2.1, Eq. 2): frames and pages first, at one tile per picture, up to `fps` frames a second; then
the largest tile count, one for all images, that fits in what is left. Unlike the paper's formula every wrapper token
(`Frame i sample at t s:`, `<img>`, `</img>`) is charged exactly: a plan never exceeds the context, and one step more would.
Nothing is decoded here: the inputs are sizes and durations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from eagle_data.ads_costs import largest, video_cost
from eagle_data.ads_headers import frame_table
from eagle_data.ads_pages import page_table, pages_shown
from eagle_data.ads_shares import FrameShares
from eagle_data.chat import render
from eagle_data.errors import SampleError
from eagle_data.placeholders import check_placeholders
from eagle_data.samples import Sample
from eagle_data.sampling import uniform
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata
from eagle_data.visual_plan import (
    DocumentPlan,
    ImagePlan,
    VideoPlan,
    VisualPlan,
    VisualRules,
    page_numbers,
    segments_of,
)

__all__ = [
    "TOO_LONG",
    "DocumentPlan",
    "ImagePlan",
    "Planner",
    "VideoPlan",
    "VisualPlan",
    "VisualRules",
    "plan",
    "segments_of",
    "tile_steps",
    "wished_frames",
]

TOO_LONG = "too long"

_ONE_TILE = ImagePlan((1, 1), 1)

Size = tuple[int, int]
Frames = tuple[int, ...]


def plan(
    sample: Sample,
    *,
    image_sizes: Sequence[Size],
    video_infos: Sequence[VideoMetadata],
    document_sizes: Sequence[Sequence[Size]] = (),
    context_length: int,
    rules: VisualRules,
    tokenizer: PromptTokenizer,
) -> VisualPlan:
    """Fit one sample into `context_length` tokens; a `Planner` does so for several lengths and tokenises the text once.

    `image_sizes` are (width, height) in pixels, `video_infos` the metadata of each video or clip, `document_sizes` the sizes of
    each document's pages. One frame or page more than the plan has would not fit, nor would the next larger tile count. Raises
    SampleError where the text alone, or the text with the least visual content, does not fit (text is never cut), for a video
    without frames, rate or finite duration, and where the text does not mention each medium exactly once.
    """
    planner = Planner(
        sample,
        image_sizes=image_sizes,
        video_infos=video_infos,
        document_sizes=document_sizes,
        rules=rules,
        tokenizer=tokenizer,
    )
    return planner.plan(context_length)


class Planner:
    """One sample to be planned for any number of context lengths. Arguments as for `plan`.

    `wishes` and `floors` are the most and the least frames of each video and, after the videos, pages of each document.
    """

    def __init__(
        self,
        sample: Sample,
        *,
        image_sizes: Sequence[Size],
        video_infos: Sequence[VideoMetadata],
        document_sizes: Sequence[Sequence[Size]] = (),
        rules: VisualRules,
        tokenizer: PromptTokenizer,
    ):
        _check(sample, image_sizes, video_infos, document_sizes)
        self.sample, self.rules, self.tokenizer = sample, rules, tokenizer
        self._sizes, self._infos, self._pages = image_sizes, video_infos, document_sizes
        # Timestamps stand on the file's clock, start + index / fps, as the released policy prints them (upstream 2.4).
        self._starts = [ref.start or 0.0 for ref in sample.videos]
        self._costs = [
            video_cost(info.frames, info.fps, start, tokenizer, rules.dialect, shown=wished_frames(info, rules))
            for start, info in zip(self._starts, video_infos, strict=True)
        ]
        limits = (*(info.frames for info in video_infos), *map(len, document_sizes))
        self.wishes = (*(wished_frames(info, rules) for info in video_infos), *map(len, document_sizes))
        self.floors = tuple(min(rules.min_frames, limit) for limit in limits)
        self._texts: dict[object, int] = {}
        self._wrappers: dict[Frames, int] = {}
        self._steps = tile_steps(rules)
        self._cuts: dict[int, tuple[ImagePlan, ...]] = {}
        # Pages of a document are mostly of one size: each size is cut once, however many pages have it.
        self._page_sizes = Counter(size for document in document_sizes for size in document)
        self._page_cuts: dict[int, dict[Size, ImagePlan]] = {}
        self._shown: dict[tuple[int, bool], int] = {}

    def plan(self, context_length: int) -> VisualPlan:
        """The plan for one context length. Raises SampleError where it cannot hold the text and the least visual content."""
        shortest = self.length(self.floors, 1)
        if shortest > context_length:
            raise SampleError(self.sample.where, self._refusal(shortest, context_length), TOO_LONG)
        frames = self.most_frames(context_length, 1)
        max_tiles = next(t for t in self._steps if t == 1 or self.length(frames, t) <= context_length)
        image_tiles, wished_tiles = self._image_tiles(frames, max_tiles), self._image_tiles(self.wishes, self._steps[0])
        given_up = (("frames", frames != self.wishes), ("tiles", image_tiles < wished_tiles))
        return VisualPlan(
            images=self._cut(max_tiles),
            videos=self._videos(frames),
            max_tiles=max_tiles,
            tiles=self.tiles(frames, max_tiles),
            length=self.length(frames, max_tiles),
            degraded=tuple(name for name, true in given_up if true),
            documents=self._documents(frames, max_tiles),
            image_tiles=image_tiles,
            wished_tiles=wished_tiles,
            wished_frames=sum(self.wishes),
        )

    def most_frames(self, context_length: int, max_tiles: int) -> Frames:
        """The most frames and pages that fit beside images of `max_tiles`; the floors where no more do."""
        shares = FrameShares(self.wishes, self.floors, most=context_length // self.rules.tokens_per_tile)
        step = largest(
            lambda step: self.length(shares.at(step), max_tiles) <= context_length,
            shares.steps,
            rises=all(cost.rises for cost in self._costs)
            and (not self._pages or frame_table(self.tokenizer, self.rules.dialect) is not None),
        )
        return shares.at(step)

    def length(self, frames: Frames, max_tiles: int) -> int:
        """Tokens of the whole sample, exactly, with `frames` of each video and document and images of up to `max_tiles`."""
        if frames not in self._wrappers:
            later = sum([cost.later(n) for cost, n in zip(self._costs, frames, strict=False)])
            self._wrappers[frames] = self._text(frames) + later
        return self._wrappers[frames] + self.tiles(frames, max_tiles) * self.rules.tokens_per_tile

    def tiles(self, frames: Frames, max_tiles: int) -> int:
        """Tiles, pages and frames to encode."""
        return sum(frames) + self._tiles_of(max_tiles, pages=bool(self._pages) and self._tiles_pages(frames))

    def text_tokens(self) -> int:
        """Tokens of the sample without any visual content: its conversation alone, placeholders removed."""
        return self._count(lambda kind, k: "", 0)

    def _tiles_of(self, max_tiles: int, *, pages: bool) -> int:
        """Tiles of all images, and with `pages` those that all pages have beyond their first, at a limit of `tile_steps`."""
        key = (max_tiles, pages)
        if key not in self._shown:
            tiles = sum([image.tiles for image in self._cut(max_tiles)])
            if pages:
                cuts = self._cut_pages(max_tiles)
                tiles += sum([(cuts[size].tiles - 1) * count for size, count in self._page_sizes.items()])
            self._shown[key] = tiles
        return self._shown[key]

    def _cut(self, max_tiles: int) -> tuple[ImagePlan, ...]:
        """How every image is cut at a tile limit of `tile_steps`."""
        if max_tiles not in self._cuts:
            above = self._cuts.get(self._limit_above(max_tiles), ())
            self._cuts[max_tiles] = self._cut_sizes(self._sizes, above, max_tiles)
        return self._cuts[max_tiles]

    def _cut_pages(self, max_tiles: int) -> dict[Size, ImagePlan]:
        """How the pages of each size are cut at a tile limit of `tile_steps`."""
        if max_tiles not in self._page_cuts:
            above = tuple(self._page_cuts.get(self._limit_above(max_tiles), {}).values())
            cuts = self._cut_sizes(tuple(self._page_sizes), above, max_tiles)
            self._page_cuts[max_tiles] = dict(zip(self._page_sizes, cuts, strict=True))
        return self._page_cuts[max_tiles]

    def _limit_above(self, max_tiles: int) -> int:
        step = self._steps.index(max_tiles)
        return self._steps[step - 1] if step else 0

    def _cut_sizes(self, sizes: Sequence[Size], above: Sequence[ImagePlan], max_tiles: int) -> tuple[ImagePlan, ...]:
        """Pictures of `sizes` cut at a tile limit; `above` is how they are cut at the limit above, or empty."""
        if not above or max_tiles < self.rules.min_tiles:
            return tuple([image_plan(size, max_tiles, self.rules) for size in sizes])
        # A choice that holds the smaller limit stays: the candidates of a smaller limit are the first of a larger one.
        return tuple(
            [
                image if image.grid[0] * image.grid[1] <= max_tiles else image_plan(size, max_tiles, self.rules)
                for image, size in zip(above, sizes, strict=True)
            ]
        )

    def _image_tiles(self, frames: Frames, max_tiles: int) -> int:
        pages = frames[len(self._infos) :] if self.rules.tile_pages else ()
        return self.tiles(frames, max_tiles) - sum(frames) + sum(pages)

    def _tiles_pages(self, frames: Frames) -> bool:
        return self.rules.tile_pages and frames[len(self._infos) :] == self.wishes[len(self._infos) :]

    def _text(self, frames: Frames) -> int:
        """Tokens of the prompt without context tokens, each video with its first frame only."""
        videos = tuple([cost.form(n) for cost, n in zip(self._costs, frames, strict=False)])
        if not self._pages:
            return self._count_text(videos, frames, (), len(self._sizes))
        pages = frames[len(self._infos) :]
        numbers = page_numbers(len(self._sizes), pages)
        later = page_table(self.tokenizer, self.rules.dialect).later
        first = self._count_text(videos, frames, tuple([own[0] for own in numbers]), len(self._sizes) + sum(pages))
        return first + sum([later(own) for own in numbers])

    def _count_text(self, videos: tuple[object, ...], frames: Frames, first_pages: tuple[int, ...], pictures: int) -> int:
        """Tokens of the prompt with one context token a picture, less those: each video (of the form in `videos`) with its first
        frame and each document with its first page (their numbers are `first_pages`) of `pictures` images and pages in all."""
        form = (videos, first_pages, pictures == 1)
        if form in self._texts:
            return self._texts[form]
        dialect = self.rules.dialect

        # One context token stands for each picture, so that texts are cut where the prompt cuts them.
        def media(kind: str, k: int) -> str:
            if kind == "image":
                return dialect.image(k, 1, pictures)
            if kind == "document":
                return dialect.image(first_pages[k - 1], 1, pictures)
            rate, time = self._costs[k - 1].first(frames[k - 1])
            return dialect.video(k, rate, [time], [1], self._infos[k - 1].duration)

        self._texts[form] = self._count(media, len(self._sizes) + len(self._infos) + len(first_pages))
        return self._texts[form]

    def _count(self, media: Callable[[str, int], str], pictures: int) -> int:
        segments = render(self.sample.messages, default_system=self.rules.dialect.default_system, media=media)
        return len(self.tokenizer.encode(segments)[0]) - pictures

    def _videos(self, frames: Frames) -> tuple[VideoPlan, ...]:
        return tuple(
            VideoPlan(uniform(info.frames, info.fps, n, start=start), info.duration)
            for start, info, n in zip(self._starts, self._infos, frames, strict=False)
        )

    def _documents(self, frames: Frames, max_tiles: int) -> tuple[DocumentPlan, ...]:
        if not self._pages:
            return ()
        cuts = self._cut_pages(max_tiles if self._tiles_pages(frames) else 1)
        plans = []
        for sizes, n in zip(self._pages, frames[len(self._infos) :], strict=True):
            indices = pages_shown(len(sizes), n)
            plans.append(DocumentPlan(indices, tuple([cuts[sizes[i]] for i in indices])))
        return tuple(plans)

    def _refusal(self, shortest: int, context_length: int) -> str:
        text = self.text_tokens()
        if text > context_length:
            needs = f"the text alone needs {text} tokens"
        else:
            parts = [f"all its text ({text} tokens)"]
            parts += [f"one tile for each of {len(self._sizes)} images"] if self._sizes else []
            parts += [f"at least {sum(self.floors[: len(self._infos)])} frames"] if self._infos else []
            parts += [f"at least {sum(self.floors[len(self._infos) :])} pages"] if self._pages else []
            needs = f"the sample needs {shortest} tokens with {', '.join(parts)}"
        return f"{needs}, but the context length is {context_length}; raise context_length or shorten the conversation"


def wished_frames(info: VideoMetadata, rules: VisualRules) -> int:
    """Frames wanted of a video: `fps` a second, at least `min_frames`, at most what the file has (paper: N_max)."""
    return min(info.frames, max(rules.min_frames, int(info.duration * rules.fps + 1e-6)))


@lru_cache(maxsize=256)
def tile_steps(rules: VisualRules) -> tuple[int, ...]:
    """Tile counts to try, largest first."""
    return tuple(sorted({rules.max_tiles, *(t for t in rules.tile_steps if t < rules.max_tiles), 1}, reverse=True))


def image_plan(size: Size, max_tiles: int, rules: VisualRules) -> ImagePlan:
    """How an image of `size` (width, height) is cut into at most `max_tiles`."""
    if max_tiles == 1:
        return _ONE_TILE
    return _image_plan(*size, min(rules.min_tiles, max_tiles), max_tiles, rules.tile_size, rules.use_thumbnail)


@lru_cache(maxsize=1 << 14)
def _image_plan(width: int, height: int, min_tiles: int, max_tiles: int, tile_size: int, use_thumbnail: bool) -> ImagePlan:
    grid = choose_grid(width, height, tile_size=tile_size, min_tiles=min_tiles, max_tiles=max_tiles)
    return ImagePlan(grid, tiles_for(grid, use_thumbnail))


def _check(sample: Sample, images: Sequence[Size], videos: Sequence[VideoMetadata], documents: Sequence[Sequence[Size]]) -> None:
    if len(images) != len(sample.images) or len(videos) != len(sample.videos):
        raise ValueError(
            f"{sample.where}: {len(sample.images)} images and {len(sample.videos)} videos, but sizes of {len(images)} and "
            f"metadata of {len(videos)} were given; give one for each"
        )
    for number, info in enumerate(videos, 1):
        finite = math.isfinite(info.fps) and math.isfinite(info.duration)
        if not (finite and info.frames >= 1 and info.fps > 0 and info.duration >= 0):
            raise SampleError(
                sample.where,
                f"video {number} has {info.frames} frames, {info.fps:g} a second, in {info.duration:g} s, of which none can be "
                "chosen; probe it again, or leave it out",
            )
    pages = [len(document.pages) for document in sample.documents]
    if [len(sizes) for sizes in documents] != pages or 0 in pages:
        raise ValueError(
            f"{sample.where}: documents of {pages} pages, but sizes of {[len(sizes) for sizes in documents]} were given; "
            "give the size of every page, and documents at least one page"
        )
    check_placeholders(sample)
