"""What a media file holds and what the model would see of it, as plain lines for the command line.

Images, videos, animations, folders of frames and LMDB stores. The frames listed are those of the released inference
policy (upstream section 2.4), the tiles those of Image Area Preservation; a training plan may take fewer of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eagle_data.errors import EagleDataError, MediaError
from eagle_data.images import image_size, load_image
from eagle_data.lmdb_store import LmdbStore
from eagle_data.sampling import released_policy
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.video import open_video

_SHOWN = 8


def describe(
    path: str | Path, *, tile_size: int = 448, tokens_per_tile: int = 256, max_tiles: int = 12, fps: float = 2.0
) -> Iterator[str]:
    """Lines about a file or folder; raises MediaError for one that cannot be read."""
    path = Path(path)
    if path.suffix == ".mdb" or (path / "data.mdb").is_file():
        yield from _store(path, tile_size, tokens_per_tile, max_tiles)
    elif path.is_file() and not _moves(path):
        load_image(path)
        yield f"image: {path}"
        yield from _picture(image_size(path), tile_size, tokens_per_tile, max_tiles)
    else:
        yield from _video(path, tokens_per_tile, fps)


def _moves(path: Path) -> bool:
    """Whether a file is no picture, or a picture of several frames."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # A JPEG with a second picture in it (a phone's depth map, say) is one photograph.
            return image.format not in ("JPEG", "MPO", "TIFF") and getattr(image, "n_frames", 1) > 1
    except UnidentifiedImageError:
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _picture(size: tuple[int, int], tile_size: int, tokens_per_tile: int, max_tiles: int) -> Iterator[str]:
    grid = choose_grid(*size, tile_size=tile_size, max_tiles=max_tiles)
    tiles = tiles_for(grid)
    yield f"size: {size[0]} x {size[1]} px"
    total = f"{tiles} with thumbnail" if tiles > 1 else "1"
    yield f"tiles: {grid[0]} columns x {grid[1]} rows of {tile_size} px, {total}, {tiles * tokens_per_tile} context tokens"


def _video(path: Path, tokens_per_tile: int, fps: float) -> Iterator[str]:
    with open_video(path) as video:
        data, times = video.metadata, video.timestamps
    yield f"video: {path}"
    yield f"size: {data.width} x {data.height} px, rotated by {data.rotation} degrees"
    yield f"frames: {data.frames} at {data.fps:.3f} fps, {data.duration:.3f} s" + (" (one a second)" if path.is_dir() else "")
    try:
        choice = released_policy(data.frames, data.fps, fps=fps)
    except EagleDataError as error:
        yield f"released policy: {error}"
        return
    yield f"released policy: {len(choice)} frames at {choice.fps:.2f} fps, {len(choice) * tokens_per_tile} context tokens"
    shown = [f"{i} ({float(times[i]):.2f} s)" for i in choice.indices]
    yield "frames taken: " + ", ".join(shown if len(shown) <= _SHOWN else [*shown[: _SHOWN - 1], "…", shown[-1]])


def _store(path: Path, tile_size: int, tokens_per_tile: int, max_tiles: int) -> Iterator[str]:
    store = LmdbStore(path)
    keys = store.keys()
    yield f"LMDB store: {path}"
    yield f"entries: {len(keys)}" + (f", of which the first {_SHOWN}:" if len(keys) > _SHOWN else "")
    for key in keys[:_SHOWN]:
        try:
            size = image_size({"lmdb_file": str(path), "lmdb_key": key})
            grid = choose_grid(*size, tile_size=tile_size, max_tiles=max_tiles)
            tokens = tiles_for(grid) * tokens_per_tile
            yield f"  {key}: {size[0]} x {size[1]} px, {grid[0]} x {grid[1]} tiles, {tokens} context tokens"
        except MediaError as error:
            yield f"  {key}: {error.reason}"
