"""Pictures of an encoded sample: decoding, cutting and normalising its units to model-ready pixels.

The edge between plans and files. Augmentation is drawn from a generator the caller seeds, so the same sample in the
same epoch always gets the same pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from PIL import Image

from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.images import load_image
from eagle_data.media_index import PreparedMedia
from eagle_data.pixels import cut_tiles, frame_pixels, image_pixels, to_pixels


def load_unit(
    unit: ImageUnit | VideoUnit,
    *,
    tile_size: int,
    use_thumbnail: bool = True,
    augment: np.random.Generator | None = None,
    wanted: Sequence[int] | None = None,
    media: PreparedMedia | None = None,
) -> np.ndarray:
    """float32 `[tiles, 3, tile_size, tile_size]` of one unit; raises MediaError naming the file that cannot be read.

    With `augment`, images are first written as JPEG of a quality drawn from it; video frames are left as they are. `wanted`
    are the tiles (or frames) of the unit to give, ascending, all when None; with none wanted no file is opened, and the
    generator moves on as if it had been. `media` is `PreparedDataset.media`: its stored indexes and its leave to fetch.
    """
    media = media or PreparedMedia()
    if wanted is not None and len(wanted) == unit.tiles:
        wanted = None
    quality = int(augment.integers(75, 101)) if augment is not None and isinstance(unit, ImageUnit) else None
    if wanted is not None and not wanted:
        return np.zeros((0, 3, tile_size, tile_size), dtype=np.float32)
    if isinstance(unit, VideoUnit):
        # Each frame is scaled as it is decoded, by the filter that cutting uses: full-size frames never pile up.
        indices = unit.indices if wanted is None else [unit.indices[frame] for frame in wanted]
        # `media` opens it with one thread: data loaders already use every core.
        with media.open_video(unit.path, start=unit.start, end=unit.end) as video:
            return frame_pixels(video.frames_at(indices, size=(tile_size, tile_size)).intact(), tile_size=tile_size)
    image = load_image(unit.source, fetch=media.fetch)
    if quality is not None:
        image = _jpeg(image, quality=quality)
    if wanted is None:
        return image_pixels(image, tile_size=tile_size, grid=unit.grid, use_thumbnail=use_thumbnail)
    tiles = cut_tiles(image, unit.grid, tile_size=tile_size, use_thumbnail=use_thumbnail)
    return to_pixels([tiles[tile] for tile in wanted])


def load_units(
    units: Sequence[ImageUnit | VideoUnit],
    *,
    tile_size: int,
    use_thumbnail: bool = True,
    augment: np.random.Generator | None = None,
    wanted: Sequence[int] | None = None,
    media: PreparedMedia | None = None,
) -> np.ndarray:
    """The pixels of all units in text order, float32 `[tiles, 3, tile_size, tile_size]`; zero tiles for no unit.

    `wanted` are the tiles to give, counted over all units, ascending; all when None. Files that hold none are not opened.
    `media` as in `load_unit`.
    """
    parts, first = [np.zeros((0, 3, tile_size, tile_size), dtype=np.float32)], 0
    for unit in units:
        own = None if wanted is None else [tile - first for tile in wanted if first <= tile < first + unit.tiles]
        parts.append(load_unit(unit, tile_size=tile_size, use_thumbnail=use_thumbnail, augment=augment, wanted=own, media=media))
        first += unit.tiles
    return np.concatenate(parts)


def units_to_json(units: Sequence[ImageUnit | VideoUnit]) -> str:
    """One JSON string for storage; `units_from_json` is its inverse."""
    return json.dumps([asdict(unit) for unit in units], separators=(",", ":"))


def units_from_json(text: str) -> tuple[ImageUnit | VideoUnit, ...]:
    """The units stored by `units_to_json`."""
    units: list[ImageUnit | VideoUnit] = []
    for values in json.loads(text):
        if "grid" in values:
            units.append(ImageUnit(**{**values, "grid": tuple(values["grid"])}))
        else:
            units.append(VideoUnit(**{**values, "indices": tuple(values["indices"])}))
    return tuple(units)


def _jpeg(image: Image.Image, *, quality: int) -> Image.Image:
    """Re-encode as JPEG, the release's only augmentation (upstream section 2.3)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
