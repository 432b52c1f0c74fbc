"""Lengths of samples as a fine-tuning mix has them, and what a pack of them costs: the default of the packing benchmarks.

3 in 10 samples are text, 5 have one image, 0.8 several, 1.2 a video. Lengths are drawn, no sample lies behind them. Another mix
is a file with the same three names.
"""

from __future__ import annotations

import numpy as np

CONTEXT = 32768
"""Tokens of a pack."""

IMAGE_TILE, FRAME_TILE = 258, 264
"""Tokens of a tile with its wrapper: 256 and two marks, and a frame's line of text."""


def lengths(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and tiles of `n` samples, both int64 `[n]`."""
    draw = np.random.default_rng(seed)
    one_image, several, video = 1, 2, 3
    kind = draw.choice([0, one_image, several, video], size=n, p=[0.30, 0.50, 0.08, 0.12])
    grid = draw.integers(1, 13, n)
    tiles = np.select(
        [kind == one_image, kind == several, kind == video],
        [
            grid + (grid > 1),  # the thumbnail, where there is more than one tile
            draw.integers(2, 8, n) * draw.integers(1, 8, n),
            draw.integers(8, 121, n),
        ],
        default=0,
    )
    text = np.where(kind == 0, draw.lognormal(6, 1, n), draw.lognormal(5, 1, n))
    tokens = text + tiles * np.where(kind == video, FRAME_TILE, IMAGE_TILE)
    return np.clip(tokens, 16, CONTEXT).astype(np.int64), tiles


def cost(document_tokens: np.ndarray, tiles: int) -> float:
    """Operations of a pack of an 8B model, forward and backward: layers, causal attention by document, the vision tower."""
    tokens = np.asarray(document_tokens, dtype=np.float64)
    layers, attention, tower = 4.2e10, 7.0e5, 3.0e12
    return float(layers * tokens.sum() + attention * (tokens**2).sum() + tower * tiles)
