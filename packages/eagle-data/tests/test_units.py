"""Units: what is stored comes back, and loading gives the pixels of decoding and cutting directly."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.errors import MediaError
from eagle_data.images import load_image
from eagle_data.lmdb_store import write_lmdb
from eagle_data.pixels import frame_pixels, image_pixels
from eagle_data.units import load_unit, load_units, units_from_json, units_to_json
from eagle_data.video import read_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .media_files import numbered_picture, write_video

seconds = st.none() | st.floats(0, 1e6)
image_units = st.builds(
    ImageUnit,
    st.text(max_size=9),
    st.none() | st.text(max_size=9),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 99),
)
video_units = st.builds(VideoUnit, st.text(max_size=9), seconds, seconds, st.lists(st.integers(0, 10**6), max_size=5).map(tuple))


@given(st.lists(image_units | video_units, max_size=4).map(tuple))
@settings(deadline=None, max_examples=100)
def test_stored_units_come_back_equal(units: tuple[ImageUnit | VideoUnit, ...]):
    assert units_from_json(units_to_json(units)) == units


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(numbered_picture(9, 150, 90)).save(path)
    return path


def test_an_image_is_cut_as_its_grid_says(picture: Path):
    unit = ImageUnit(str(picture), None, (2, 1), 3)
    expected = image_pixels(load_image(picture), tile_size=32, grid=(2, 1))
    assert np.array_equal(load_unit(unit, tile_size=32), expected)
    assert load_unit(unit, tile_size=32, use_thumbnail=False).shape == (2, 3, 32, 32)


def test_an_image_of_a_store_equals_its_file(picture: Path, tmp_path: Path):
    write_lmdb(tmp_path / "s", [("a", picture.read_bytes())])
    stored = ImageUnit(str(tmp_path / "s"), "a", (1, 1), 1)
    assert np.array_equal(load_unit(stored, tile_size=32), load_unit(ImageUnit(str(picture), None, (1, 1), 1), tile_size=32))


def picture_folder(folder: Path) -> Path:
    folder.mkdir()
    for number in range(20):
        Image.fromarray(numbered_picture(number)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_frames_scaled_while_decoding_equal_full_frames_cut_afterwards(kind: str, tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=20) if kind == "file" else picture_folder(tmp_path / "frames")
    unit = VideoUnit(str(path), 0.2, None, (0, 3, 3, 11))
    full = read_frames(path, unit.indices, start=0.2)
    assert full.shape == (4, 64, 96, 3)
    assert np.array_equal(load_unit(unit, tile_size=24), frame_pixels(full, tile_size=24))


def test_all_units_are_joined_in_order(picture: Path, tmp_path: Path):
    video = VideoUnit(str(write_video(tmp_path / "v.mp4", frames=10)), None, None, (0, 9))
    image = ImageUnit(str(picture), None, (2, 1), 3)
    both = load_units([video, image], tile_size=16)
    assert both.shape == (5, 3, 16, 16)
    assert np.array_equal(both[:2], load_unit(video, tile_size=16))
    assert np.array_equal(both[2:], load_unit(image, tile_size=16))
    assert load_units([], tile_size=16).shape == (0, 3, 16, 16)


def test_augmentation_is_jpeg_of_a_drawn_quality_and_repeats_with_its_seed(picture: Path):
    unit = ImageUnit(str(picture), None, (1, 1), 1)
    first, again, other = (load_unit(unit, tile_size=64, augment=np.random.default_rng(seed)) for seed in (1, 1, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, load_unit(unit, tile_size=64))
    by_quality = []
    for quality in range(75, 101):
        buffer = io.BytesIO()
        load_image(picture).save(buffer, "JPEG", quality=quality)
        by_quality.append(image_pixels(load_image(buffer.getvalue()), tile_size=64, grid=(1, 1)))
    assert any(np.array_equal(first, pixels) for pixels in by_quality)


@pytest.mark.parametrize("wanted", [[], [0], [1, 3], [0, 1, 2, 3, 4], [2, 4], [3]])
def test_wanted_tiles_are_those_of_the_whole(wanted: list[int], picture: Path, tmp_path: Path):
    units = [
        VideoUnit(str(write_video(tmp_path / "v.mp4", frames=10)), None, None, (0, 9)),
        ImageUnit(str(picture), None, (2, 1), 3),
        ImageUnit(str(picture), None, (1, 1), 1),
    ]
    whole = load_units(units, tile_size=16, augment=np.random.default_rng(4))
    some = load_units(units, tile_size=16, augment=np.random.default_rng(4), wanted=wanted)
    assert np.array_equal(some, whole[wanted])
    last = load_units(units, tile_size=16, augment=np.random.default_rng(4), wanted=[*wanted, 5])
    assert np.array_equal(last[-1], whole[5])  # its JPEG quality does not depend on what was decoded before it


def test_a_file_of_which_no_tile_is_wanted_is_not_opened():
    gone = [VideoUnit("gone.mp4", None, None, (0, 9)), ImageUnit("gone.png", None, (2, 1), 3)]
    assert load_units(gone, tile_size=16, wanted=[]).shape == (0, 3, 16, 16)
    with pytest.raises(MediaError, match=r"gone\.png"):
        load_units(gone, tile_size=16, wanted=[4])


def test_a_file_that_is_gone_or_shorter_than_planned_is_named(tmp_path: Path):
    with pytest.raises(MediaError, match=r"gone\.png: no such file"):
        load_unit(ImageUnit(str(tmp_path / "gone.png"), None, (1, 1), 1), tile_size=16)
    path = write_video(tmp_path / "v.mp4", frames=5)
    with pytest.raises(MediaError, match=r"v\.mp4: has 5 frames, there is no frame 7"):
        load_unit(VideoUnit(str(path), None, None, (7,)), tile_size=16)
