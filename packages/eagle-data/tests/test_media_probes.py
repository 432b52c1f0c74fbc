"""Probes: every reference is looked at once, failures included, and verification finds damage that headers hide."""

from __future__ import annotations

from pathlib import Path

import pytest
from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.errors import MediaError, MissingMediaError
from eagle_data.lmdb_store import write_lmdb
from eagle_data.media_probes import MediaProbes
from eagle_data.samples import ImageRef, VideoRef
from PIL import Image

from .media_files import numbered_picture, write_video


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    Image.fromarray(numbered_picture(3, 200, 120)).save(path)
    return path


def test_a_shared_reference_is_opened_once(picture: Path, tmp_path: Path):
    video = write_video(tmp_path / "v.mp4", frames=10)
    probes = MediaProbes()
    for _ in range(3):
        assert probes.image(ImageRef(str(picture))) == (200, 120)
        assert probes.video(VideoRef(str(video))).frames == 10
        assert probes.video(VideoRef(str(video), 0.2)).frames == 5
    assert probes.probed == 3


def test_a_failure_is_remembered_and_raised_again_with_the_same_words(tmp_path: Path):
    probes = MediaProbes()
    errors = []
    for _ in range(2):
        with pytest.raises(MissingMediaError) as caught:
            probes.video(VideoRef(str(tmp_path / "none.mp4")))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert probes.probed == 1


def test_missing_things_are_told_from_damaged_ones(tmp_path: Path):
    write_lmdb(tmp_path / "s", [("bad", b"not a picture")])
    probes = MediaProbes()
    for ref in (ImageRef(str(tmp_path / "none.png")), ImageRef(str(tmp_path / "none"), "k"), ImageRef(str(tmp_path / "s"), "k")):
        with pytest.raises(MediaError) as caught:
            probes.image(ref)
        assert caught.value.kind == "missing media"
    with pytest.raises(MediaError) as caught:
        probes.image(ImageRef(str(tmp_path / "s"), "bad"))
    assert caught.value.kind == "unreadable media"


def test_verification_decodes_what_no_earlier_call_has_decoded(picture: Path, tmp_path: Path):
    video = str(write_video(tmp_path / "v.mp4", frames=10))
    probes = MediaProbes()
    units = [ImageUnit(str(picture), None, (2, 1), 3), VideoUnit(video, None, None, (0, 5))]
    probes.verify(units, tile_size=16)
    assert probes.probed == 2
    probes.verify([*units, VideoUnit(video, None, None, (5,))], tile_size=16)
    assert probes.probed == 2
    probes.verify([VideoUnit(video, None, None, (5, 9))], tile_size=16)
    assert probes.probed == 3


def test_verification_finds_a_picture_whose_header_is_whole(picture: Path):
    picture.write_bytes(picture.read_bytes()[:-200])
    probes = MediaProbes()
    assert probes.image(ImageRef(str(picture))) == (200, 120)
    for _ in range(2):
        with pytest.raises(MediaError, match="truncated or corrupt"):
            probes.verify([ImageUnit(str(picture), None, (1, 1), 1)], tile_size=16)


def test_verification_finds_a_frame_that_is_not_there(tmp_path: Path):
    video = str(write_video(tmp_path / "v.mp4", frames=5))
    with pytest.raises(MediaError, match="there is no frame 6"):
        MediaProbes().verify([VideoUnit(video, None, None, (6,))], tile_size=16)
