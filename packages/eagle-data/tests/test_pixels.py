"""Cutting and normalising: order of tiles, the exact filter, the exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from eagle_data.errors import EagleDataError
from eagle_data.pixels import cut_tiles, frame_pixels, image_pixels, to_pixels
from PIL import Image

SIDE = 16


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_are_row_major_with_the_thumbnail_last() -> None:
    colours = [(10 * i, 255 - 10 * i, 5 * i) for i in range(6)]
    picture = Image.new("RGB", (3 * SIDE, 2 * SIDE))
    for place, colour in enumerate(colours):
        picture.paste(colour, (place % 3 * SIDE, place // 3 * SIDE, (place % 3 + 1) * SIDE, (place // 3 + 1) * SIDE))
    tiles = cut_tiles(picture, (3, 2), tile_size=SIDE)
    assert [tile.getpixel((8, 8)) for tile in tiles[:6]] == colours
    assert len(tiles) == 7
    assert np.array_equal(np.asarray(tiles[6]), np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))


def test_tiles_put_together_are_the_plainly_resized_image() -> None:
    picture = noise(37, 53)
    tiles = [np.asarray(tile) for tile in cut_tiles(picture, (2, 3), tile_size=SIDE, use_thumbnail=False)]
    whole = np.concatenate([np.concatenate(tiles[2 * row : 2 * row + 2], axis=1) for row in range(3)], axis=0)
    assert np.array_equal(whole, np.asarray(picture.resize((2 * SIDE, 3 * SIDE), Image.Resampling.BICUBIC)))


def test_one_tile_has_no_thumbnail() -> None:
    assert len(cut_tiles(noise(50, 40), (1, 1), tile_size=SIDE)) == 1


def test_pixels_are_normalised_per_channel_in_float32() -> None:
    picture = noise(2 * SIDE, SIDE)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    pixels = image_pixels(picture, tile_size=SIDE, grid=(2, 1), use_thumbnail=False, mean=mean, std=std)
    assert pixels.dtype == np.float32
    assert pixels.shape == (2, 3, SIDE, SIDE)
    exact = (np.asarray(picture)[:, SIDE:].astype(np.float64) / 255 - mean) / std
    assert np.allclose(pixels[1], exact.transpose(2, 0, 1), atol=1e-6)


def test_the_default_range_is_minus_one_to_one() -> None:
    pixels = to_pixels([Image.new("RGB", (SIDE, SIDE), (0, 255, 51))])
    assert pixels[0, 0].max() == -1
    assert pixels[0, 1].min() == 1
    assert pixels[0, 2, 0, 0] == pytest.approx(-0.6)


def test_frames_give_one_tile_each_whether_arrays_or_pictures() -> None:
    pictures = [noise(30, 20, seed) for seed in range(3)]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    pixels = frame_pixels(arrays, tile_size=SIDE)
    assert pixels.shape == (3, 3, SIDE, SIDE)
    assert np.array_equal(pixels, frame_pixels(pictures, tile_size=SIDE))
    assert np.array_equal(pixels[2:], image_pixels(pictures[2], tile_size=SIDE, grid=(1, 1)))


def test_frames_already_of_the_tile_size_are_not_resampled() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    back = np.rint((frame_pixels(frames, tile_size=SIDE) * 0.5 + 0.5) * 255).astype(np.uint8)
    assert np.array_equal(back.transpose(0, 2, 3, 1), frames)


def test_alpha_lies_on_white_as_in_load_image() -> None:
    tile = cut_tiles(Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)), (1, 1), tile_size=SIDE)[0]
    assert tile.getpixel((3, 3)) == (255, 255, 255)


def test_wrong_input_is_named() -> None:
    with pytest.raises(EagleDataError, match="no tiles"):
        to_pixels([])
    with pytest.raises(EagleDataError, match="one size"):
        to_pixels([noise(4, 4), noise(5, 5)])
    with pytest.raises(EagleDataError, match=r"uint8 \[n, height, width, 3\]"):
        frame_pixels(np.zeros((2, 3, 4, 4), np.float32), tile_size=SIDE)
    with pytest.raises(EagleDataError, match="columns and rows"):
        cut_tiles(noise(4, 4), (0, 2), tile_size=SIDE)
