"""From patch features to tokens of the language model: pixel shuffle and `mlp1`.

It promises the released channel order and parameter names (upstream sections 1.3 and 1.4) in all three shapes of the
connector. It knows nothing of images or text.
"""

from __future__ import annotations

import torch
from torch import nn


def pixel_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Fold each `factor` x `factor` block of patches into one token.

    Args:
        features: [tiles, rows, columns, channels].
        factor: side of a block; must divide rows and columns.

    Returns:
        [tiles, rows / factor, columns / factor, factor² x channels]; the channels of a token are those of its patches
        in row-major order, (row offset, column offset, channel).
    """
    tiles, rows, columns, channels = features.shape
    if rows % factor or columns % factor:
        raise ValueError(f"a grid of {rows} x {columns} patches cannot be folded by {factor}")
    blocks = features.reshape(tiles, rows // factor, factor, columns // factor, factor, channels)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(tiles, rows // factor, columns // factor, factor * factor * channels)


def shuffle_patches(features: torch.Tensor, factor: int) -> torch.Tensor:
    """`pixel_shuffle` on flat patches: [tiles, patches, channels] to [tiles, patches / factor², factor² x channels]."""
    tiles, patches, channels = features.shape
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} patches are no square grid")
    return pixel_shuffle(features.reshape(tiles, side, side, channels), factor).flatten(1, 2)


def build_connector(vision_hidden: int, text_hidden: int, *, factor: int, layers: int) -> nn.Sequential:
    """`mlp1` with the released parameter names.

    Two layers: LayerNorm (0), Linear (1), exact GELU (2), Linear (3). One layer: Linear (0). The input width is
    `factor² x vision_hidden`; upstream sizes two layers without pixel shuffle wrongly and fails there.
    """
    width = factor * factor * vision_hidden
    if layers == 1:
        return nn.Sequential(nn.Linear(width, text_hidden))
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, text_hidden), nn.GELU(), nn.Linear(text_hidden, text_hidden))
