"""Samples to plan, made from a seed: their texts, and the sizes and durations of media that do not exist.

Nothing is decoded, so plans cost the same as for real files. The tokenizer is the one of the tests (Qwen's splitting rule, a
small vocabulary) unless a checkpoint folder is given: with few merges, texts have more tokens than under a full vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TypeVar

import numpy as np
from eagle_data.ads import Planner, VisualRules
from eagle_data.samples import DocumentRef, ImageRef, Message, Sample, VideoRef
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata
from tokenizers import Tokenizer

WORDS = ("what", "is", "shown", "at", "the", "picture", "a", "small", "red", "house", "describe", "it", "which", "digit", "video")
RATES = (23.976, 24.0, 25.0, 29.97, 30.0, 60.0)


@dataclass(frozen=True)
class Item:
    """A sample and what planning must know of its media."""

    sample: Sample
    sizes: list[tuple[int, int]]
    infos: list[VideoMetadata]
    pages: list[list[tuple[int, int]]]

    def planner(self, rules: VisualRules, tokenizer: PromptTokenizer) -> Planner:
        return Planner(
            self.sample,
            image_sizes=self.sizes,
            video_infos=self.infos,
            document_sizes=self.pages,
            rules=rules,
            tokenizer=tokenizer,
        )


Kind = TypeVar("Kind", bound=PromptTokenizer)


def load_tokenizer(folder: Path | None, kind: type[Kind]) -> Kind:
    """The tokenizer of a checkpoint folder, or the small one of the tests, as a `kind`."""
    if folder is not None:
        return kind(Tokenizer.from_file(str(folder / "tokenizer.json")))
    path = Path(__file__).parent.parent / "tests" / "toy_tokenizer.py"
    spec = spec_from_file_location("toy_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["toy_tokenizer"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return kind(module.train_tokenizer())


def item(
    rng: np.random.Generator,
    number: int,
    *,
    images: int = 0,
    videos: int = 0,
    pages: int = 0,
    words: float = 50,
    longest: float = 7200,
) -> Item:
    """One sample: a question of about `words` words (log-normal) after its media, and an answer a third as long.

    Videos last log-uniformly from 10 s to `longest` seconds; images have 0.1 to 8 megapixels, pages those of A4 at 144 dpi.
    """
    length = max(4, int(rng.lognormal(np.log(words), 1)))
    marks = "".join(f"<image-{k + 1}>" for k in range(images)) + "".join(f"<video-{k + 1}>" for k in range(videos))
    marks += "<document-1>" if pages else ""
    answer = " ".join(rng.choice(WORDS, max(1, length // 3)))
    infos = []
    for _ in range(videos):
        fps, seconds = float(rng.choice(RATES)), float(np.exp(rng.uniform(np.log(10), np.log(longest))))
        frames = max(1, int(seconds * fps))
        infos.append(VideoMetadata(frames, fps, frames / fps, 1280, 720, 0))
    sizes = []
    for _ in range(images):
        area, ratio = np.exp(rng.uniform(np.log(1e5), np.log(8e6))), np.exp(rng.uniform(-0.9, 0.9))
        sizes.append((max(1, int((area * ratio) ** 0.5)), max(1, int((area / ratio) ** 0.5))))
    sample = Sample(
        "bench",
        f"bench.jsonl:{number}",
        (Message("user", f"{marks}{' '.join(rng.choice(WORDS, length))} {number}?"), Message("assistant", f"{answer}.")),
        tuple(ImageRef(f"{number}_{k}.png") for k in range(images)),
        tuple(VideoRef(f"{number}_{k}.mp4") for k in range(videos)),
        (DocumentRef(f"{number}.pdf", tuple(range(1, pages + 1))),) if pages else (),
    )
    return Item(sample, sizes, infos, [[(1191, 1684)] * pages] if pages else [])
