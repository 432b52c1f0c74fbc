"""A planned sample to token ids, labels and the list of pictures to cut: the value that packing and loading use.

Labels stand where the supervised tokens stand (not shifted) and are IGNORE elsewhere, WITHHELD in answers of weight 0. Pictures
are listed in the order of their context tokens in the text, which is the order in which the model scatters their features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eagle_data.ads import VisualPlan, VisualRules, segments_of
from eagle_data.errors import SampleError
from eagle_data.placeholders import MISMATCH, check_placeholders, split_placeholders
from eagle_data.samples import ImageRef, Sample
from eagle_data.special_tokens import IMG_CONTEXT
from eagle_data.tokens import PromptTokenizer

IGNORE = -100
WITHHELD = -101
"""Of tokens that are never learnt, even where prompts are: `collate` makes IGNORE of it."""


@dataclass(frozen=True)
class ImageUnit:
    """Tiles of one image: `path` (and `key` in an LMDB store), `grid` (columns, rows), `tiles` with the thumbnail."""

    path: str
    key: str | None
    grid: tuple[int, int]
    tiles: int

    @property
    def source(self) -> str | dict[str, str]:
        """What `eagle_data.images.load_image` takes."""
        return ImageRef(self.path, self.key).source


@dataclass(frozen=True)
class VideoUnit:
    """Frames of one video or clip, one tile each: displayed-frame `indices` counted from the clip's start."""

    path: str
    start: float | None
    end: float | None
    indices: tuple[int, ...]

    @property
    def tiles(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Encoded:
    """`input_ids` and `labels` int32 `[tokens]`; `units` in text order; `tiles` is the sum over units. Labels may hold WITHHELD,
    which a loss does not know: `collate` resolves it."""

    input_ids: np.ndarray
    labels: np.ndarray
    units: tuple[ImageUnit | VideoUnit, ...]

    @property
    def tiles(self) -> int:
        return sum(unit.tiles for unit in self.units)


def encode(sample: Sample, plan: VisualPlan, *, rules: VisualRules, tokenizer: PromptTokenizer) -> Encoded:
    """Token ids, labels and pictures of `sample` under `plan`.

    Raises SampleError where the text does not mention each medium exactly once, where the number of context tokens differs from
    the plan's pictures, and where nothing is supervised.
    """
    check_placeholders(sample)
    segments = segments_of(sample, plan.images, plan.videos, rules, documents=plan.documents)
    ids, supervised = tokenizer.encode(segments)
    input_ids = np.asarray(ids, dtype=np.int32)
    labels = np.where(np.asarray(supervised, dtype=bool), input_ids, np.int32(IGNORE))
    if any(segment.answer and not segment.supervised for segment in segments):
        answers = [replace(segment, supervised=segment.answer and not segment.supervised) for segment in segments]
        labels[np.asarray(tokenizer.encode(answers)[1], dtype=bool)] = WITHHELD
    units: list[ImageUnit | VideoUnit] = []
    for message in sample.messages:
        if message.role == "assistant":
            continue
        for part in split_placeholders(message.text):
            if isinstance(part, str):
                continue
            kind, k = part
            if kind == "image":
                ref, image = sample.images[k - 1], plan.images[k - 1]
                units.append(ImageUnit(ref.path, ref.key, image.grid, image.tiles))
            elif kind == "document":
                document = plan.documents[k - 1]
                for i, page in zip(document.indices, document.images, strict=True):
                    ref = sample.documents[k - 1].page(i)
                    units.append(ImageUnit(ref.path, ref.key, page.grid, page.tiles))
            else:
                clip, choice = sample.videos[k - 1], plan.videos[k - 1].frames
                units.append(VideoUnit(clip.path, clip.start, clip.end, choice.indices))
    encoded = Encoded(input_ids, labels, tuple(units))
    context_tokens = int((input_ids == tokenizer.special[IMG_CONTEXT]).sum())
    if context_tokens != encoded.tiles * rules.tokens_per_tile:
        raise SampleError(
            sample.where,
            f"the text holds {context_tokens} {IMG_CONTEXT} tokens but its media give {encoded.tiles} tiles of "
            f"{rules.tokens_per_tile}; the placeholders and the media of this sample disagree",
            MISMATCH,
        )
    if not (labels >= 0).any():
        raise SampleError(
            sample.where, "no token is supervised; give the conversation a non-empty gpt turn", "empty conversation"
        )
    return encoded
