"""The quick start's corpus: real handwritten digits composed into images, strips and video clips, on disk.

scikit-learn's 1797 scanned digits are split 80/20 by source image, so no held-out picture shows a digit seen in
training. The corpus is written in Eagle's public formats: JSONL conversations, a recipe, PNG and JPEG files, an LMDB
store and H.264 clips. A `text` dataset asks the same questions with the digits written out; it teaches the toy
language model the task's language before it sees a picture.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from eagle_data.dialect import RELEASED
from eagle_data.lmdb_store import write_lmdb
from eagle_data.sampling import uniform
from eagle_data.special_tokens import IMG_CONTEXT, IMG_END, IMG_START
from eagle_data.strict import Strict
from PIL import Image
from pydantic import Field

CELL = 32
"""Pixels of a digit's square; equal to the toy tower's tile, so a strip of k digits is cut into k tiles."""
CLIP_FPS = 8
TASKS = ("digit", "strip", "clip")
QUESTIONS = {
    "digit": ("Which digit is this?", "What digit does the picture show?"),
    "strip": ("Read the digits.", "Which digits are in the picture?"),
    "clip": ("Which digit is shown at {time} seconds?",),
}


DRILLS = {"drill_2": 2, "drill_3": 3, "drill_5": 5}
"""The drills by name and the most digits of their clips, in the order in which a model can learn them."""
TEXTS = {"text_pictures": (0.0, 8, 1), "text_clip_5": (1.0, 5, 1), "text_clip": (1.0, 8, 1), "text": (0.6, 8, 2)}
"""The text datasets by name: the share of clips, their most digits, and the questions about each."""


class DigitsCorpus(Strict):
    """How many conversations of each kind to write; the defaults are the quick start's."""

    digits: int = Field(900, ge=1)
    strips: int = Field(1400, ge=1)
    clips: int = Field(1500, ge=1)
    drills: int = Field(2000, ge=1)
    """In each of the drill datasets."""
    texts: int = Field(2500, ge=1)
    """In each of the text datasets."""
    pictures: int = Field(4, ge=1)
    """A training conversation is about 1 to this many pictures."""
    questions: int = Field(2, ge=2)
    """About each training clip."""
    held_out: int = Field(150, ge=1)
    """Questions per task in the held-out set, each about one picture or clip."""


def build_corpus(
    folder: Path, config: DigitsCorpus, *, seed: int, tokens_per_tile: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the corpus to `folder`; whole or not at all, and not again where it is there already.

    `recipe.json` mixes the training sets; `held_out/<task>.jsonl` has the questions for evaluation.
    `tokens_per_tile` is how often the text dataset repeats a written digit: as often as a tile has tokens.
    """
    stamp = json.dumps(
        {"config": config.model_dump(), "seed": seed, "tokens_per_tile": tokens_per_tile, "version": 4}, sort_keys=True
    )
    if (folder / "corpus.json").is_file() and (folder / "corpus.json").read_text() == stamp:
        return
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(partial, config, np.random.default_rng(seed), tokens_per_tile, progress or (lambda done, total: None))
    (partial / "corpus.json").write_text(stamp)
    partial.rename(folder)


def _write(
    folder: Path, config: DigitsCorpus, rng: np.random.Generator, tokens_per_tile: int, progress: Callable[[int, int], None]
) -> None:
    train, held_out = _split(rng)
    total = (
        config.digits
        + config.strips
        + config.clips
        + len(DRILLS) * config.drills
        + len(TEXTS) * config.texts
        + 3 * config.held_out
    )
    done = 0

    def write(path: Path, lines: Iterator[dict[str, Any]]) -> None:
        nonlocal done
        with path.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                done += 1
                if done % 50 == 0 or done == total:
                    progress(done, total)

    media = folder / "media"
    media.mkdir()
    write(folder / "digit.jsonl", _digit_lines(train, config.digits, media, "digit", rng, config.pictures))
    write(folder / "strip.jsonl", _strip_lines(train, config.strips, media, "strip", rng, config.pictures))
    write(folder / "clip.jsonl", _clip_lines(train, config.clips, media, "clip", rng, config.questions))
    for name, most_digits in DRILLS.items():
        write(folder / f"{name}.jsonl", _drill_lines(config.drills, tokens_per_tile, rng, most_digits=most_digits))
    for name, (clips, most_digits, questions) in TEXTS.items():
        pictures = config.pictures + 1
        lines = _text_lines(
            config.texts, tokens_per_tile, rng, questions=questions, pictures=pictures, clips=clips, most_digits=most_digits
        )
        write(folder / f"{name}.jsonl", lines)
    (folder / "held_out").mkdir()
    makers = {"digit": _digit_lines, "strip": _strip_lines, "clip": _clip_lines}
    for task, make in makers.items():
        write(folder / "held_out" / f"{task}.jsonl", make(held_out, config.held_out, media, f"held_out_{task}", rng, 1))
    descriptions = {
        "digit": "single handwritten digits; PNG, JPEG and LMDB",
        "strip": "2 to 5 digits in a row or a column, cut into tiles",
        "clip": "H.264 clips of 4 to 8 digits, one a second",
        **{name: f"in text: looking up a time among at most {most} digits" for name, most in DRILLS.items()},
        "text_pictures": "conversations about single digits and strips, the digits as text",
        "text_clip_5": "conversations about clips of at most 5 digits, the digits as text",
        "text_clip": "conversations about clips, the digits as text",
        "text": "all of them, the digits as text",
    }
    recipe = {
        name: {"root": "media", "annotation": f"{name}.jsonl", "repeat_time": 1, "description": description}
        for name, description in descriptions.items()
    }
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """float32 pictures `[1797, 8, 8]` in 0..1 and their digits int64 `[1797]`."""
    from sklearn.datasets import load_digits as sklearn_digits

    data: Any = sklearn_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int64)


def _split(rng: np.random.Generator) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Per digit, its pictures for training and those held out (80/20)."""
    pictures, labels = load_digits()
    train, held_out = [], []
    for digit in range(10):
        own = [pictures[i] for i in rng.permutation(np.flatnonzero(labels == digit))]
        cut = round(0.8 * len(own))
        train.append(own[:cut])
        held_out.append(own[cut:])
    return train, held_out


def training_pictures(seed: int) -> list[list[np.ndarray]]:
    """Per digit, the pictures of the training split that `build_corpus` uses for the same seed."""
    return _split(np.random.default_rng(seed))[0]


def draw_cell(picture: np.ndarray, rng: np.random.Generator, *, cell: int = CELL) -> np.ndarray:
    """uint8 `[cell, cell, 3]`: a digit `[8, 8]` enlarged, shifted by a few pixels, as dark ink on light paper."""
    side = int(rng.integers(round(cell * 0.72), round(cell * 0.94) + 1))
    ink = np.asarray(
        Image.fromarray((picture * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32
    )
    left, top = (int(rng.integers(0, cell - side + 1)) for _ in range(2))
    canvas = np.zeros((cell, cell), dtype=np.float32)
    canvas[top : top + side, left : left + side] = ink / 255
    paper, pen = rng.uniform(200, 255, 3), rng.uniform(0, 70, 3)
    return (paper + canvas[..., None] * (pen - paper)).clip(0, 255).astype(np.uint8)


def _draw(
    pools: Sequence[Sequence[np.ndarray]], digits: Sequence[int], rng: np.random.Generator, cell: int = CELL
) -> list[np.ndarray]:
    return [draw_cell(pools[d][int(rng.integers(len(pools[d])))], rng, cell=cell) for d in digits]


def _ask(task: str, rng: np.random.Generator, **values: object) -> str:
    return str(rng.choice(QUESTIONS[task])).format(**values)


def _turns(question: str, answer: str, placeholder: str = "") -> list[dict[str, str]]:
    return [{"from": "human", "value": placeholder + question}, {"from": "gpt", "value": answer}]


def _digit_lines(
    pools: Sequence[Sequence[np.ndarray]], count: int, media: Path, name: str, rng: np.random.Generator, most: int
) -> Iterator[dict[str, Any]]:
    """Conversations about 1 to `most` single digits, in the legacy form of the schema.

    A third of the pictures each are PNG files, JPEG files and values of an LMDB store, which is written at the end.
    """
    (media / name).mkdir()
    store: list[tuple[str, bytes]] = []
    written = 0
    for _ in range(count):
        images: list[Any] = []
        turns: list[dict[str, str]] = []
        pictures = int(rng.integers(1, most + 1))
        for k in range(1, pictures + 1):
            digit = int(rng.integers(10))
            picture = Image.fromarray(_draw(pools, [digit], rng)[0])
            turns += _turns(_ask("digit", rng), str(digit), "<image>\n" if pictures == 1 else f"<image-{k}>")
            if written % 3 == 2:
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                store.append((f"{written:06d}", buffer.getvalue()))
                images.append({"lmdb_file": f"{name}.lmdb", "lmdb_key": f"{written:06d}"})
            else:
                images.append(f"{name}/{written:06d}.{('png', 'jpg')[written % 3]}")
                picture.save(media / images[-1], quality=92)
            written += 1
        yield {"image": images[0] if pictures == 1 else images, "conversations": turns}
    if store:
        write_lmdb(media / f"{name}.lmdb", store)


def _strip_lines(
    pools: Sequence[Sequence[np.ndarray]], count: int, media: Path, name: str, rng: np.random.Generator, most: int
) -> Iterator[dict[str, Any]]:
    """Conversations about 1 to `most` strips, in the unified form of the schema."""
    (media / name).mkdir()
    written = 0
    for _ in range(count):
        images: list[str] = []
        turns: list[dict[str, str]] = []
        for k in range(1, int(rng.integers(1, most + 1)) + 1):
            digits = [int(d) for d in rng.integers(0, 10, 2 + written % 4)]
            axis = int(rng.integers(2))  # 0: a column, 1: a row
            images.append(f"{name}/{written:06d}.png")
            Image.fromarray(np.concatenate(_draw(pools, digits, rng), axis=axis)).save(media / images[-1])
            turns += _turns(_ask("strip", rng), "".join(map(str, digits)), f"<image-{k}>")
            written += 1
        yield {"data": [{"type": "image", "image_list": images}], "conversations": turns}


def _clip_lines(
    pools: Sequence[Sequence[np.ndarray]], count: int, media: Path, name: str, rng: np.random.Generator, questions: int
) -> Iterator[dict[str, Any]]:
    """Clips of 4 to 8 seconds, one digit a second; the times asked about cover every second equally often."""
    (media / name).mkdir()
    for i in range(count):
        digits = [int(d) for d in rng.integers(0, 10, 4 + i % 5)]
        path = f"{name}/{i:06d}.mp4"
        write_clip(media / path, [cell for cell in _draw(pools, digits, rng, 2 * CELL) for _ in range(CLIP_FPS)], fps=CLIP_FPS)
        seconds = _seconds(len(digits), questions, rng) if questions > 1 else [i // 5 % len(digits)]
        turns = []
        for number, second in enumerate(seconds):
            question = _ask("clip", rng, time=second + 0.5)
            turns += _turns(question, str(digits[second]), "" if number else "<video-1>")
        yield {"data": [{"type": "video", "video_list": [{"video": path}]}], "conversations": turns}


def _seconds(digits: int, questions: int, rng: np.random.Generator) -> list[int]:
    """`questions` seconds to ask about, each second once before any is asked about again."""
    order: list[int] = []
    while len(order) < questions:
        order += [int(s) for s in rng.permutation(digits)]
    return order[:questions]


def _drill_lines(count: int, tokens_per_tile: int, rng: np.random.Generator, *, most_digits: int) -> Iterator[dict[str, Any]]:
    """Bare clips in text, one frame a digit at any time in its second, one question: looking up a time and no more.

    A small model finds out how to look something up on two frames within minutes, on eight of them not at all; so
    these come first, the shortest clips before the longer ones.
    """
    for _ in range(count):
        digits = [int(d) for d in rng.integers(0, 10, int(rng.integers(2, most_digits + 1)))]
        frames = "".join(
            f"Frame {i + 1} sample at {i + rng.random():.2f}s: {str(digit) * tokens_per_tile}" for i, digit in enumerate(digits)
        )
        second = int(rng.integers(len(digits)))
        turns = _turns(_ask("clip", rng, time=second + 0.5), str(digits[second]), frames)
        yield {"conversations": [{"from": "system", "value": ""}, *turns]}


def _text_lines(
    count: int,
    tokens_per_tile: int,
    rng: np.random.Generator,
    *,
    questions: int,
    pictures: int,
    clips: float,
    most_digits: int = 8,
) -> Iterator[dict[str, Any]]:
    """The very prompts of the tasks, with each tile's context tokens replaced by its digit, as often.

    A share `clips` are clips of 2 to `most_digits` digits, the others conversations about 1 to `pictures` pictures.
    """
    block = re.compile(f"{IMG_START}(?:{IMG_CONTEXT})*{IMG_END}")
    for _ in range(count):
        lines: list[dict[str, str]] = []
        if rng.random() < clips:
            digits = [int(d) for d in rng.integers(0, 10, int(rng.integers(2, most_digits + 1)))]
            choice = uniform(len(digits) * CLIP_FPS, CLIP_FPS, len(digits) + int(rng.integers(2)))
            text = RELEASED.video(1, choice.fps, choice.timestamps, [tokens_per_tile] * len(choice.indices))
            for index in choice.indices:
                text = block.sub(str(digits[index // CLIP_FPS]) * tokens_per_tile, text, count=1)
            for second in _seconds(len(digits), min(questions, len(digits)), rng):
                question = _ask("clip", rng, time=second + 0.5)
                lines += _turns(question, str(digits[second]), "" if lines else text)
        else:
            for k in range(1, int(rng.integers(1, pictures + 1)) + 1):
                task = TASKS[int(rng.integers(2))]
                digits = [int(d) for d in rng.integers(0, 10, 1 if task == "digit" else int(rng.integers(2, 6)))]
                thumbnail = [] if task == "digit" else [int(rng.integers(10))]  # an extra tile that answers nothing
                written = "".join(str(d) * tokens_per_tile for d in [*digits, *thumbnail])
                lines += _turns(_ask(task, rng), "".join(map(str, digits)), f"<image {k}>{written}")
        yield {"conversations": lines}


def write_clip(path: Path, frames: Sequence[np.ndarray], *, fps: int) -> None:
    """Encode uint8 `[height, width, 3]` frames (even sides) as an H.264 MP4 with a key frame every four seconds."""
    import av

    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = 4 * fps
        stream.options = {"preset": "veryfast", "crf": "18", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
