"""From pictures to the float tiles that the vision tower eats: resize, cut, thumbnail, normalise.

Promises the released training path: plain Pillow bicubic resize without keeping the aspect, tiles row by row, thumbnail last,
``(x / 255 - mean) / std`` in float32. Takes decoded pictures; choosing the grid is `eagle_data.tiling`, reading is `images` and
`video`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .errors import EagleDataError
from .images import load_image
from .tiling import tiles_for

__all__ = ["cut_tiles", "frame_pixels", "image_pixels", "to_pixels"]

Stat = tuple[float, float, float]
_HALF: Stat = (0.5, 0.5, 0.5)


def cut_tiles(image: Image.Image, grid: tuple[int, int], *, tile_size: int, use_thumbnail: bool = True) -> list[Image.Image]:
    """Resize `image` to the grid and cut it (upstream 2.2).

    Args:
        image: any mode; other than RGB is converted as `load_image` does.
        grid: ``(cols, rows)``.
        tile_size: side of a tile in pixels.
        use_thumbnail: append the whole image at ``tile_size`` squared, unless the grid is 1x1.

    Returns:
        `tiles_for(grid, use_thumbnail)` RGB pictures of ``tile_size`` squared, row-major, thumbnail last.
    """
    if tile_size < 1:
        raise EagleDataError(f"tile_size={tile_size}: must be at least 1.")
    count = tiles_for(grid, use_thumbnail)
    cols, rows = grid
    picture = image if image.mode == "RGB" else load_image(image)
    whole = picture.resize((cols * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((col * tile_size, row * tile_size, (col + 1) * tile_size, (row + 1) * tile_size))
        for row in range(rows)
        for col in range(cols)
    ]
    if count > len(tiles):
        tiles.append(picture.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
    return tiles


def to_pixels(tiles: Sequence[Image.Image], *, mean: Stat = _HALF, std: Stat = _HALF) -> np.ndarray:
    """Normalise equally sized square RGB tiles.

    Returns:
        float32 ``[tiles, 3, side, side]``, ``(x / 255 - mean) / std`` per channel.

    Raises:
        EagleDataError: for no tiles, or tiles of different sizes or modes.
    """
    if not tiles:
        raise EagleDataError("to_pixels was given no tiles: pass at least one.")
    if len({(tile.size, tile.mode) for tile in tiles}) != 1 or tiles[0].mode != "RGB":
        raise EagleDataError(f"tiles differ: {sorted({(tile.size, tile.mode) for tile in tiles})}; all must be RGB of one size.")
    return _normalise(np.stack([np.asarray(tile) for tile in tiles]), mean, std)


def image_pixels(
    image: Image.Image,
    *,
    tile_size: int,
    grid: tuple[int, int],
    use_thumbnail: bool = True,
    mean: Stat = _HALF,
    std: Stat = _HALF,
) -> np.ndarray:
    """Cut one image and normalise it: float32 ``[tiles_for(grid, use_thumbnail), 3, tile_size, tile_size]``."""
    return to_pixels(cut_tiles(image, grid, tile_size=tile_size, use_thumbnail=use_thumbnail), mean=mean, std=std)


def frame_pixels(
    frames: np.ndarray | Sequence[Image.Image], *, tile_size: int, mean: Stat = _HALF, std: Stat = _HALF
) -> np.ndarray:
    """One tile per frame, never a thumbnail.

    Args:
        frames: uint8 ``[n, height, width, 3]`` or pictures of any size and mode.
        tile_size: side of a tile in pixels.
        mean: per channel, in 0..1.
        std: per channel, in 0..1.

    Returns:
        float32 ``[n, 3, tile_size, tile_size]``.
    """
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise EagleDataError(f"frames are {frames.dtype} {list(frames.shape)}: need uint8 [n, height, width, 3].")
        if frames.shape[1:3] == (tile_size, tile_size) and len(frames):
            return _normalise(frames, mean, std)
        pictures: Sequence[Image.Image] = [Image.fromarray(frame) for frame in frames]
    else:
        pictures = frames
    tiles = [tile for picture in pictures for tile in cut_tiles(picture, (1, 1), tile_size=tile_size)]
    return to_pixels(tiles, mean=mean, std=std)


def _normalise(pictures: np.ndarray, mean: Stat, std: Stat) -> np.ndarray:
    """uint8 ``[n, h, w, 3]`` to float32 ``[n, 3, h, w]``."""
    pixels = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32)
    pixels /= np.float32(255)
    pixels -= np.asarray(mean, np.float32)[:, None, None]
    pixels /= np.asarray(std, np.float32)[:, None, None]
    return pixels
