"""Videos at addresses: only with leave, from allowed hosts, by ranges, and bounded in bytes and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from eagle_data import Fetch, MediaError, load_image, open_video, probe_video, read_frames, read_frames_isolated
from PIL import Image

from ..media_files import write_video
from ..web_server import Whole, served

LARGE = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("web")
    write_video(place / "clip.mp4", 40)
    Image.new("RGB", (20, 12), "orange").save(place / "a.png")
    write_video(place / "large.mp4", 60, size=(640, 480), options={"crf": "0"})
    with (place / "large.mp4").open("ab") as file:  # a free box, so that the file is large and its tables are not its end
        file.write(LARGE.to_bytes(4, "big") + b"free" + bytes(LARGE - 8))
    return place


@pytest.fixture
def whole(folder: Path) -> Iterator[str]:
    yield from served(partial(Whole, directory=str(folder)))


def test_an_address_is_read_by_ranges(folder: Path, ranges: str, asked: list[str]) -> None:
    for name in ("clip.mp4", "large.mp4"):
        given = read_frames(f"{ranges}/{name}", [3, 31], fetch=Fetch())
        assert np.array_equal(given, read_frames(folder / name, [3, 31]))
    assert probe_video(f"{ranges}/clip.mp4", fetch=Fetch()) == probe_video(folder / "clip.mp4")
    fetched = (asked.count("/large.mp4") - 1) * (1 << 18)
    assert fetched < (folder / "large.mp4").stat().st_size - LARGE // 2


def test_leave_and_its_bounds_travel_to_an_isolated_reader(folder: Path, ranges: str) -> None:
    url = f"{ranges}/clip.mp4"
    given = read_frames_isolated(url, [3], fetch=Fetch(hosts=("127.0.0.1",)))
    assert np.array_equal(given.pixels, read_frames(folder / "clip.mp4", [3]))
    with pytest.raises(MediaError, match=r"host 127\.0\.0\.1, which is not allowed"):
        read_frames_isolated(url, [3], fetch=Fetch(hosts=("example.org",)))


def test_pictures_of_a_list_are_fetched_under_the_same_leave(whole: str) -> None:
    with open_video([f"{whole}/a.png"] * 2, fetch=Fetch()) as video:
        assert video.frames_at([1]).pixels.shape == (1, 12, 20, 3)
    with pytest.raises(MediaError, match="fetching is off"):
        open_video([f"{whole}/a.png"])


def test_without_leave_an_address_is_refused_in_the_words_used_for_images_and_nothing_is_asked(
    ranges: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{ranges}/clip.mp4"
    with pytest.raises(MediaError) as image:
        load_image(url)
    for way in (open_video, probe_video, lambda source: read_frames(source, [0])):
        with pytest.raises(MediaError) as video:
            way(url)
        assert str(video.value) == str(image.value)
    assert asked == []
    monkeypatch.setenv("EAGLE_DATA_FETCH", "1")
    assert probe_video(url).frames == 40


def test_only_allowed_hosts_are_asked_redirects_included(ranges: str, asked: list[str]) -> None:
    with pytest.raises(MediaError, match=r"host 127\.0\.0\.1, which is not allowed"):
        open_video(f"{ranges}/clip.mp4", fetch=Fetch(hosts=("example.org",)))
    assert asked == []
    with pytest.raises(MediaError, match=r"host elsewhere\.invalid, which is not allowed"):
        open_video(f"{ranges}/clip.mp4?away", fetch=Fetch(hosts=("127.0.0.1",)))


def test_bytes_are_bounded_over_all_ranges_of_an_open_video(folder: Path, ranges: str) -> None:
    size = (folder / "clip.mp4").stat().st_size
    assert probe_video(f"{ranges}/clip.mp4", fetch=Fetch(max_bytes=size)).frames == 40
    with pytest.raises(MediaError, match=rf"took more than {size - 1} bytes.*raise max_bytes"):
        open_video(f"{ranges}/clip.mp4", fetch=Fetch(max_bytes=size - 1))
    with (
        pytest.raises(MediaError, match="took more than 786432 bytes"),  # three blocks
        open_video(f"{ranges}/large.mp4", fetch=Fetch(max_bytes=3 << 18)) as video,
    ):
        video.frames_at(range(60))


def test_seconds_are_bounded_for_a_server_that_drips(ranges: str) -> None:
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"took longer than 0\.5 s"):
        open_video(f"{ranges}/clip.mp4?drip", fetch=Fetch(seconds=0.5))
    assert time.monotonic() - started < 3


def test_a_server_without_ranges_or_with_wrong_ones_is_refused(ranges: str, whole: str) -> None:
    with pytest.raises(MediaError, match=r"does not answer range requests.*Fetch it first"):
        open_video(f"{whole}/clip.mp4", fetch=Fetch())
    with pytest.raises(MediaError, match="404"):
        open_video(f"{whole}/gone.mp4", fetch=Fetch())
    with pytest.raises(MediaError, match="sent another range than asked"):
        open_video(f"{ranges}/clip.mp4?other", fetch=Fetch())
    with pytest.raises(MediaError, match="has changed while it was read"):
        open_video(f"{ranges}/large.mp4?grows", fetch=Fetch()).frames_at(range(60))
