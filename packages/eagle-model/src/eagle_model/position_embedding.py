"""Learned absolute positions of the tower, resampled for another tile size.

It promises the same bicubic resampling as SigLIP's own interpolation in transformers, done once and stored, and that
the size it already has is returned bit for bit. Nothing else of the tower depends on the tile size.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate
from transformers import SiglipVisionConfig, SiglipVisionModel

_KEY = "embeddings.position_embedding.weight"


def resize_position_embedding(weight: torch.Tensor, side: int) -> torch.Tensor:
    """Resample positions of a square grid of patches to `side` x `side`.

    Args:
        weight: [patches, hidden], patches in row-major order, any float type.
        side: patches per side of the new grid.

    Returns:
        [side², hidden] in the type of `weight`; `weight` itself where the size is unchanged. Computed in float32 at least.

    Raises:
        ValueError: `weight` is no square grid, or `side` is not positive.
    """
    patches, hidden = weight.shape
    old = round(patches**0.5)
    if old * old != patches:
        raise ValueError(f"the tower has positions for {patches} patches, which is no square grid")
    if side < 1:
        raise ValueError(f"a grid of {side} patches a side does not exist; give at least 1")
    if side == old:
        return weight
    grid = weight if weight.dtype == torch.float64 else weight.float()
    grid = grid.reshape(1, old, old, hidden).permute(0, 3, 1, 2)
    resized = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(side * side, hidden).to(weight.dtype)


def square_tile(tower: SiglipVisionModel) -> int:
    """Side in pixels of the pictures the tower has positions for. Raises ValueError where they are not square."""
    size = tower.config.image_size
    if not isinstance(size, int):
        raise ValueError(f"the tower takes pictures of {size} pixels; Eagle's tiles are square, with one number")
    return size


def tower_for_tile_size(tower: SiglipVisionModel, tile_size: int) -> SiglipVisionModel:
    """`tower`, or a copy of it with positions for tiles of `tile_size` pixels.

    Weights other than the position embedding are the same tensors. Raises ValueError where the patch size does not divide
    `tile_size`.
    """
    config, patch = tower.config, int(tower.config.patch_size)  # pyright: ignore[reportArgumentType]  # always square
    if tile_size == square_tile(tower):
        return tower
    if tile_size % patch:
        raise ValueError(f"a tile of {tile_size} pixels is not a whole number of patches of {patch}; choose a multiple")
    fields = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    resized = SiglipVisionModel(SiglipVisionConfig(**{**fields, "image_size": tile_size}))
    state = dict(tower.state_dict())
    state[_KEY] = resize_position_embedding(state[_KEY], tile_size // patch)
    resized.load_state_dict(state, assign=True)
    return resized.train(tower.training)
