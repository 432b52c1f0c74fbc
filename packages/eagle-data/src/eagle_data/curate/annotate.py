"""All requests of a run, in the order in which they depend on each other, and their answers put together.

Clip level: a caption from frames, then questions from the caption. Story level: a caption for each chapter, then questions
about the video. A unit that fails becomes a reject and the others go on; a later run asks only for what is missing. Which
types are asked is drawn from the seed and the unit, so that every run asks the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eagle_data.curate.asking import Asker, Stopped
from eagle_data.curate.clips import Clip, fingerprint, moments
from eagle_data.curate.collect import Rejected
from eagle_data.curate.prompts import (
    Caption,
    Chapter,
    Pair,
    Pictures,
    Request,
    caption_request,
    clip_questions_request,
    story_questions_request,
)
from eagle_data.curate.recipe import ClipLevel, CurateRecipe, StoryLevel
from eagle_data.errors import EagleDataError

__all__ = [
    "AnnotatedClip",
    "AnnotatedStory",
    "Annotations",
    "annotate",
    "clip_caption",
    "clip_questions",
    "read_chapters",
    "story_captions",
    "story_questions",
]

Item = TypeVar("Item")
Result = TypeVar("Result")
Pairs = tuple[tuple[str, Pair], ...]


@dataclass(frozen=True)
class AnnotatedClip:
    """A clip, its captions and its questions, each with its type."""

    clip: Clip
    caption: Caption
    pairs: Pairs


@dataclass(frozen=True)
class AnnotatedStory:
    """A video, its chapters with their captions, and its questions."""

    video: str
    chapters: tuple[tuple[Chapter, Caption], ...]
    pairs: Pairs


@dataclass(frozen=True)
class Annotations:
    """What a run has: finished units, units that failed, and how many were not asked because it stopped."""

    clips: tuple[AnnotatedClip, ...]
    stories: tuple[AnnotatedStory, ...]
    rejects: tuple[Rejected, ...]
    missing: int


def annotate(
    recipe: CurateRecipe,
    asker: Asker,
    clips: Sequence[Clip],
    stories: dict[str, tuple[Chapter, ...]],
    progress: Callable[[str, int, int], None] | None = None,
) -> Annotations:
    """Ask for everything about `clips` and `stories` (video to its chapters) that the journal has not yet."""
    rejects: list[Rejected] = []
    missing = 0
    threads = asker.settings.concurrency

    def run(
        label: str, function: Callable[[Item], Result], items: Sequence[Item], name: Callable[[Item], str]
    ) -> list[Result | None]:
        nonlocal missing
        results: list[Result | None] = [None] * len(items)
        for done, (i, result) in enumerate(_map(_guarded(function), items, threads, asker.stop), 1):
            if isinstance(result, Stopped):
                missing += 1
            elif isinstance(result, Exception):
                rejects.append(Rejected(name(items[i]), str(result)))
            else:
                results[i] = result
            if progress is not None:
                progress(label, done, len(items))
        return results

    annotated_clips: list[AnnotatedClip | None] = []
    if recipe.clip_level is not None:
        level = recipe.clip_level
        annotated_clips = run("clips", lambda clip: _clip(recipe, level, asker, clip), clips, lambda clip: clip.id)
    annotated_stories: list[AnnotatedStory | None] = []
    if recipe.story_level is not None and stories:
        told = recipe.story_level
        requests = [request for video, chapters in stories.items() for request in story_captions(recipe, told, video, chapters)]
        run("chapters", asker.ask, requests, lambda request: request.unit)
        annotated_stories = run(
            "stories", lambda item: _story(recipe, told, asker, *item), list(stories.items()), lambda item: item[0]
        )
    return Annotations(
        tuple(clip for clip in annotated_clips if clip is not None),
        tuple(story for story in annotated_stories if story is not None),
        tuple(sorted(set(rejects), key=lambda reject: reject.where)),
        missing,
    )


def clip_caption(recipe: CurateRecipe, level: ClipLevel, clip: Clip) -> Request:
    """The request for a clip's captions."""
    seconds = moments(clip.start, clip.end, level.fps, level.max_frames)
    return caption_request("caption", clip.id, _pictures(recipe, clip.video, seconds), start=clip.start, end=clip.end)


def clip_questions(recipe: CurateRecipe, level: ClipLevel, clip: Clip, caption: Caption) -> Request:
    """The request for a clip's questions."""
    return clip_questions_request(clip.id, caption, _draw(recipe.seed, clip.id, level.types, level.questions))


def story_captions(recipe: CurateRecipe, level: StoryLevel, video: str, chapters: Sequence[Chapter]) -> list[Request]:
    """The requests for the captions of a video's chapters."""
    requests = []
    for chapter in chapters:
        seconds = moments(chapter.start, chapter.end, level.fps, level.max_frames)
        unit = Clip(video, chapter.start, chapter.end).id
        shown = _pictures(recipe, video, seconds)
        requests.append(caption_request("chapter", unit, shown, start=chapter.start, end=chapter.end, title=chapter.title))
    return requests


def story_questions(recipe: CurateRecipe, level: StoryLevel, video: str, told: Sequence[tuple[Chapter, Caption]]) -> Request:
    """The request for the questions about a video, from its captioned chapters."""
    return story_questions_request(video, told, _draw(recipe.seed, video, level.types, level.questions))


def read_chapters(path: Path, durations: dict[str, float], least: int) -> tuple[dict[str, tuple[Chapter, ...]], list[Rejected]]:
    """The chapters of the videos in `durations` (seconds), from a JSONL file; see `recipe.StoryLevel`.

    Videos of fewer than `least` chapters, of other names, or with chapters outside the video are rejected with the line. The
    last chapter may reach up to a second over the end, as people's times do. Raises EagleDataError where the file is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EagleDataError(f"{path}: the chapters cannot be read ({error.strerror}); check story_level.chapters.") from error
    stories: dict[str, tuple[Chapter, ...]] = {}
    rejects: list[Rejected] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            video = record["video"]
            if video not in durations:
                continue  # a video that was not kept, or is no candidate
            if video in stories:
                raise ValueError("the video has chapters already; write each video once")
            stories[video] = _chapters(record["chapters"], durations[video], least)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            form = '{"video", "chapters": [{"start", "end", "title"}, …]}'
            rejects.append(Rejected(f"{path}:{number}", f"{wrong}. Write {form}."))
    return stories, rejects


def _chapters(items: Any, duration: float, least: int) -> tuple[Chapter, ...]:
    chapters = tuple(
        Chapter(float(item["start"]), min(float(item["end"]), duration), str(item["title"]).strip()) for item in items
    )
    if len(chapters) < least:
        raise ValueError(f"{len(chapters)} chapters, the recipe asks for {least} at least")
    for chapter, item in zip(chapters, items, strict=True):
        if not 0 <= chapter.start < chapter.end or float(item["end"]) > duration + 1:
            raise ValueError(f"a chapter from {item['start']} s to {item['end']} s does not lie in {duration:.1f} s of video")
    return chapters


def _clip(recipe: CurateRecipe, level: ClipLevel, asker: Asker, clip: Clip) -> AnnotatedClip:
    caption = asker.ask(clip_caption(recipe, level, clip))
    assert isinstance(caption, Caption)
    return AnnotatedClip(clip, caption, _pairs(asker, clip_questions(recipe, level, clip, caption)))


def _story(recipe: CurateRecipe, level: StoryLevel, asker: Asker, video: str, chapters: Sequence[Chapter]) -> AnnotatedStory:
    captions = [asker.finished(request) for request in story_captions(recipe, level, video, chapters)]
    told = tuple((chapter, caption) for chapter, caption in zip(chapters, captions, strict=True) if isinstance(caption, Caption))
    if len(told) < len(chapters):
        if asker.stopped:
            raise Stopped(asker.stopped)
        missing = len(chapters) - len(told)
        raise EagleDataError(f"{missing} of its {len(chapters)} chapters have no caption; run again to ask for them.")
    return AnnotatedStory(video, told, _pairs(asker, story_questions(recipe, level, video, told)))


def _pairs(asker: Asker, request: Request) -> Pairs:
    answer = asker.ask(request)
    return tuple((name, pair) for name in type(answer).model_fields if (pair := getattr(answer, name)) is not None)


def _pictures(recipe: CurateRecipe, video: str, seconds: Sequence[float]) -> Pictures:
    path = recipe.root / video
    return Pictures(path, video, fingerprint(path), tuple(seconds))


def _draw(seed: int, unit: str, types: Sequence[str], count: int) -> list[str]:
    drawn = set(random.Random(f"{seed}:{unit}").sample(list(types), count))
    return [name for name in types if name in drawn]


def _guarded(function: Callable[[Item], Result]) -> Callable[[Item], Result | Exception]:
    """The function with the errors that concern one unit only as its result."""

    def call(item: Item) -> Result | Exception:
        try:
            return function(item)
        except (EagleDataError, OSError) as error:
            return error

    return call


def _map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, stop: Callable[[str], None]
) -> Iterator[tuple[int, Result]]:
    """Results with their items' numbers, as they come; never more than twice `threads` items are under way.

    Broken off (by Ctrl-C, say), it calls `stop`, so that what is under way ends soon.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="curate") as pool:
        running: dict[Future[Result], int] = {}
        try:
            for i, item in enumerate(items):
                running[pool.submit(function, item)] = i
                if len(running) >= 2 * threads:
                    yield from _taken(running)
            while running:
                yield from _taken(running)
        except BaseException:
            stop("interrupted")
            for future in running:
                future.cancel()
            raise


def _taken(running: dict[Future[Result], int]) -> Iterator[tuple[int, Result]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()
