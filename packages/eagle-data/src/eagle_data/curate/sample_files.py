"""Annotations as training samples: JSONL in this package's schema and the data recipe that names it.

`clips.jsonl` asks about clips, `videos.jsonl` asks the same, anchored, about their whole videos, `stories.jsonl` asks about
whole videos; `data.json` is what `eagle-data prepare` takes. Files appear whole. The key `curated` is for people: readers of
samples pass over it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eagle_data.curate.anchors import anchored
from eagle_data.curate.annotate import AnnotatedClip, AnnotatedStory, Annotations
from eagle_data.curate.prompts import Pair
from eagle_data.curate.recipe import AnchorForm, CurateRecipe

__all__ = ["write_lines", "write_samples", "write_text"]


def write_samples(annotations: Annotations, recipe: CurateRecipe, durations: dict[str, float], out: Path) -> dict[str, int]:
    """Write the three files and the data recipe to `out`; returns the number of questions in each file."""
    forms: tuple[AnchorForm, ...] = recipe.clip_level.anchors if recipe.clip_level else ("time",)
    asked = [clip for clip in annotations.clips if clip.pairs]
    lifted = [_lifted(clip, forms, recipe.seed) for clip in asked if not _is_whole(clip, durations)]
    samples = {
        "clips": [_of_clip(clip) for clip in asked],
        "videos": lifted,
        "stories": [_of_story(story) for story in annotations.stories if story.pairs],
    }
    root = Path(os.path.relpath(recipe.root.resolve(), out.resolve())).as_posix()
    data = {name: {"annotation": f"{name}.jsonl", "root": root} for name, lines in samples.items() if lines}
    for name, lines in samples.items():
        write_lines(out / f"{name}.jsonl", lines)
    write_text(out / "data.json", json.dumps(data, indent=2) + "\n")
    return {name: sum(len(line["conversations"]) // 2 for line in lines) for name, lines in samples.items()}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line; the file appears whole."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _of_clip(clip: AnnotatedClip) -> dict[str, Any]:
    video = {"video": clip.clip.video, "start_time": clip.clip.start, "end_time": clip.clip.end}
    turns = [(pair.question, pair.answer) for _, pair in clip.pairs]
    return {"id": clip.clip.id, "video": video, **_talk(turns), **_curated(clip.pairs, "clip", clip.caption.brief)}


def _lifted(clip: AnnotatedClip, forms: tuple[AnchorForm, ...], seed: int) -> dict[str, Any]:
    chance = random.Random(f"{seed}:anchor:{clip.clip.id}")
    spans: dict[str, Any] = {"start": clip.clip.start, "end": clip.clip.end, "brief": clip.caption.brief}
    turns = [(anchored(pair.question, pair.answer, **spans, forms=forms, chance=chance), pair.answer) for _, pair in clip.pairs]
    curated = _curated(clip.pairs, "video", clip.caption.brief)
    return {"id": f"{clip.clip.id}#video", "video": clip.clip.video, **_talk(turns), **curated}


def _of_story(story: AnnotatedStory) -> dict[str, Any]:
    turns = [(pair.question, pair.answer) for _, pair in story.pairs]
    return {"id": f"{story.video}#story", "video": story.video, **_talk(turns), **_curated(story.pairs, "story", "")}


def _talk(turns: list[tuple[str, str]]) -> dict[str, Any]:
    conversation = []
    for number, (question, answer) in enumerate(turns):
        conversation.append({"from": "human", "value": question if number else f"<video>\n{question}"})
        conversation.append({"from": "gpt", "value": answer})
    return {"conversations": conversation}


def _curated(pairs: tuple[tuple[str, Pair], ...], level: str, brief: str) -> dict[str, Any]:
    return {"curated": {"level": level, "types": [name for name, _ in pairs], **({"caption": brief} if brief else {})}}


def _is_whole(clip: AnnotatedClip, durations: dict[str, float]) -> bool:
    """Whether the clip is all of its video: then there is no moment to point at."""
    return clip.clip.start <= 0 and clip.clip.end >= durations[clip.clip.video]
