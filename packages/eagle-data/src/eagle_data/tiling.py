"""Image Area Preservation: how many tiles an image gets, and in which grid (paper section 3.2.1, equation 1).

Promises the released model's choice bit for bit: the same candidates, in the same order, scored in float64 by the same sequence
of operations. Knows only widths and heights; cutting pixels is `eagle_data.pixels`.
"""

from __future__ import annotations

from functools import lru_cache

from .errors import EagleDataError

__all__ = ["candidate_grids", "choose_grid", "tiles_for"]

# The order in which the release visits the grids of 1 to 12 tiles (upstream section 2.2). It came out of the iteration order of a
# hash set, so no rule reproduces it; it decides exact ties between grids of equal area and is therefore frozen.
_RELEASED_ORDER: tuple[tuple[int, int], ...] = (
    *((1, 1), (1, 2), (2, 1), (3, 1), (1, 3), (2, 2), (4, 1), (1, 4), (5, 1), (1, 5)),
    *((1, 6), (6, 1), (3, 2), (2, 3), (7, 1), (1, 7), (4, 2), (2, 4), (1, 8), (8, 1)),
    *((1, 9), (3, 3), (9, 1), (2, 5), (5, 2), (10, 1), (1, 10), (11, 1), (1, 11)),
    *((12, 1), (3, 4), (4, 3), (1, 12), (6, 2), (2, 6)),
)
_RELEASED_MAX = 12


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All grids ``(cols, rows)`` with ``min_tiles <= cols * rows <= max_tiles``, in the order they are scored.

    Areas up to 12 follow the released order; larger areas come after them by ascending area, then ascending columns. The list for
    a smaller `max_tiles` is a prefix of the list for a larger one, which makes the chosen tile count monotone in `max_tiles`.

    Raises:
        EagleDataError: unless ``1 <= min_tiles <= max_tiles``.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise EagleDataError(f"min_tiles={min_tiles}, max_tiles={max_tiles}: need 1 <= min_tiles <= max_tiles.")
    larger = sorted(
        (
            (cols, area // cols)
            for area in range(_RELEASED_MAX + 1, max_tiles + 1)
            for cols in range(1, area + 1)
            if area % cols == 0
        ),
        key=lambda grid: (grid[0] * grid[1], grid[0]),
    )
    return tuple(grid for grid in (*_RELEASED_ORDER, *larger) if min_tiles <= grid[0] * grid[1] <= max_tiles)


def choose_grid(width: int, height: int, *, tile_size: int = 448, min_tiles: int = 1, max_tiles: int = 12) -> tuple[int, int]:
    """The grid ``(cols, rows)`` that keeps the most of an image's area and shape.

    Maximises ``min(cols * rows * tile_size**2 / (width * height), 0.6) * min(r / r0, r0 / r)`` with ``r = cols / rows`` and
    ``r0 = width / height``; the first strict maximum wins, so ties take the fewest tiles. Very large squares tie mathematically
    between 3x3, 3x4 and 4x3 and are decided by float64 noise (first at 2009 x 2009), which is why the order of operations is
    kept.

    Args:
        width: pixels, after EXIF rotation.
        height: pixels, after EXIF rotation.
        tile_size: side of a tile in pixels (the model's ``force_image_size``).
        min_tiles: fewest tiles, thumbnail not counted.
        max_tiles: most tiles, thumbnail not counted. One tile for video frames.

    Raises:
        EagleDataError: for a size that is not positive or impossible bounds.
    """
    if width < 1 or height < 1 or tile_size < 1:
        raise EagleDataError(f"width={width}, height={height}, tile_size={tile_size}: all three must be at least 1.")
    area = width * height
    ratio = width / height
    best, best_score = (1, 1), float("-inf")
    for cols, rows in candidate_grids(min_tiles, max_tiles):
        grid_ratio = cols / rows
        score = min(cols * rows * tile_size * tile_size / area, 0.6) * min(grid_ratio / ratio, ratio / grid_ratio)
        if score > best_score:
            best, best_score = (cols, rows), score
    return best


def tiles_for(grid: tuple[int, int], use_thumbnail: bool = True) -> int:
    """Number of tiles of an image cut by `grid` ``(cols, rows)``: one more than the grid for the thumbnail, unless it is 1x1."""
    cols, rows = grid
    if cols < 1 or rows < 1:
        raise EagleDataError(f"grid={grid}: columns and rows must be at least 1.")
    count = cols * rows
    return count + 1 if use_thumbnail and count != 1 else count
