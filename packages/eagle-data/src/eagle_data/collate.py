"""Collation: the samples of one pack to the arrays a model step takes. One pure function, numpy only.

Shifting happens here, within each document, and nowhere else: `shift_labels` are the only labels that packed or
sharded losses read, `loss_rows` the host-known rows that carry a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from eagle_data.encode import IGNORE, WITHHELD

LossWeighting = Literal["token", "sqrt_sample", "sqrt_turn"]


@dataclass(frozen=True)
class LoadedSample:
    """`input_ids`, `labels` int32 `[tokens]`; `pixels` float32 `[tiles, 3, tile, tile]`; `where` is its provenance."""

    input_ids: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray
    where: str


@dataclass(frozen=True)
class Batch:
    """One pack as model inputs.

    `input_ids`, `labels`, `shift_labels`, `position_ids` int64 `[1, tokens]`; `loss_weight` float32 `[1, tokens]`,
    aligned with `shift_labels`; `loss_rows` int64 `[supervised]`; `cu_seqlens` int32 `[documents + 1]`;
    `pixel_values` float32 `[tiles, 3, tile, tile]`; `image_flags` int64 `[tiles]`; `provenance` one entry a document.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    shift_labels: np.ndarray
    loss_rows: np.ndarray
    loss_weight: np.ndarray
    position_ids: np.ndarray
    cu_seqlens: np.ndarray
    pixel_values: np.ndarray
    image_flags: np.ndarray
    provenance: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])


def collate(
    samples: Sequence[LoadedSample],
    *,
    tile_size: int,
    weighting: LossWeighting = "token",
    prompt_weight: float = 0.0,
    dummy_tile: bool = False,
) -> Batch:
    """Concatenate `samples` into one `Batch`.

    `weighting`: "token" gives every supervised token weight 1; "sqrt_sample" gives n^-1/2 with n the supervised
    tokens of its sample, "sqrt_turn" of its turn (upstream section 1.7; the normaliser is applied later, over the
    whole optimiser step). `prompt_weight` above 0 also learns the tokens that are not supervised, each with this weight,
    but for WITHHELD ones: plain language modelling, for pretraining on text. `dummy_tile` adds one white tile of flag 0 to a
    text-only pack, for engines whose ranks must all run the vision tower. Raises ValueError for no samples, another
    `weighting`, and a sample whose labels are not as many as its tokens.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    if weighting not in get_args(LossWeighting):
        raise ValueError(f"there is no weighting {weighting!r}; use {', '.join(get_args(LossWeighting))}")
    for sample in samples:
        if len(sample.labels) != len(sample.input_ids):
            raise ValueError(
                f"{sample.where}: {len(sample.labels)} labels for {len(sample.input_ids)} tokens; give one label a token"
            )
    lengths = [len(sample.input_ids) for sample in samples]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    withheld = np.concatenate([_shift(sample.labels) == WITHHELD for sample in samples])
    labels = [np.where(sample.labels == WITHHELD, np.int32(IGNORE), sample.labels) for sample in samples]
    shifted = [_shift(own) for own in labels]
    shift_labels = np.concatenate(shifted).astype(np.int64)
    weights = np.concatenate([_weights(own, weighting) for own in shifted])
    if prompt_weight > 0:
        every = np.concatenate([_shift(sample.input_ids) for sample in samples])
        prompts = (shift_labels == IGNORE) & (every != IGNORE) & ~withheld
        weights = np.where(prompts, np.float32(prompt_weight), weights)
        shift_labels = np.where(prompts, every, shift_labels).astype(np.int64)
    pixels = [sample.pixels for sample in samples if len(sample.pixels)]
    flags = np.ones(sum(len(p) for p in pixels), dtype=np.int64)
    if not pixels:
        pixels = [np.ones((1 if dummy_tile else 0, 3, tile_size, tile_size), dtype=np.float32)]
        flags = np.zeros(len(pixels[0]), dtype=np.int64)
    return Batch(
        input_ids=np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)[None],
        labels=np.concatenate(labels).astype(np.int64)[None],
        shift_labels=shift_labels[None],
        loss_rows=np.flatnonzero(shift_labels != IGNORE).astype(np.int64),
        loss_weight=weights[None],
        position_ids=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])[None],
        cu_seqlens=cu_seqlens,
        pixel_values=np.concatenate(pixels),
        image_flags=flags,
        provenance=tuple(sample.where for sample in samples),
    )


def _shift(labels: np.ndarray) -> np.ndarray:
    """`labels` moved one place left within a document; the last token predicts nothing."""
    return np.append(labels[1:], np.int32(IGNORE))


def _weights(shift_labels: np.ndarray, weighting: LossWeighting) -> np.ndarray:
    """float32 `[tokens]`, 0 where nothing is supervised."""
    valid = shift_labels != IGNORE
    weights = valid.astype(np.float32)
    if weighting == "token" or not valid.any():
        return weights
    if weighting == "sqrt_sample":
        return weights / np.sqrt(np.float32(valid.sum()))
    starts = np.flatnonzero(valid & ~np.append(False, valid[:-1]))
    ends = np.flatnonzero(valid & ~np.append(valid[1:], False)) + 1
    for start, end in zip(starts, ends, strict=True):
        weights[start:end] /= np.sqrt(np.float32(end - start))
    return weights
