"""Frames from a child process: the reader's own answers and errors, and an end to whatever hangs, crashes or grows."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from eagle_data import MediaError, MissingMediaError, open_video, read_frames, read_frames_isolated
from eagle_data.fetch import Fetch
from PIL import Image

from .media_files import write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("isolated") / "clip é.mp4", 40)


@pytest.fixture
def hanging() -> Iterator[str]:
    """An address that takes connections and never answers: opening it waits as long as `PATIENT` allows."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/never.mp4"


PATIENT = Fetch(seconds=300)


def children() -> list[int]:
    """Process ids of our children that run the reader."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"eagle_data.isolated" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_frames_are_those_of_the_reader_bit_for_bit(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [31, 0, 39, 31]
    with open_video(clip) as video:
        expected = video.frames_at(asked)
    given = read_frames_isolated(clip, asked, memory=1 << 30)
    for column in ("pixels", "seconds", "indices", "corrupt"):
        one, other = getattr(given, column), getattr(expected, column)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert given.source == expected.source
    assert np.array_equal(given.intact(), read_frames(clip, asked))
    monkeypatch.chdir(clip.parent)
    assert np.array_equal(read_frames_isolated(clip.name, seconds=[0.5], size=(48, 32)).pixels, _at_half_a_second(clip))
    assert np.array_equal(read_frames_isolated(clip.read_bytes(), seconds=[0.5], size=(48, 32)).pixels, _at_half_a_second(clip))


def _at_half_a_second(clip: Path) -> np.ndarray:
    with open_video(clip) as video:
        return video.frames_at(seconds=[0.5], size=(48, 32)).pixels


def test_a_list_of_pictures_is_read_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for shade, path in enumerate(paths):
        Image.new("RGB", (8, 6), (shade, 2, 3)).save(path)
    assert read_frames_isolated(paths, [1, 0]).pixels[:, 0, 0].tolist() == [[1, 2, 3], [0, 2, 3]]


def test_damage_is_marked_and_the_readers_errors_come_back_as_they_are(clip: Path, tmp_path: Path) -> None:
    with open_video(clip) as video:
        assert video.index is not None
        victim = int(video.index.offset[5])
    data = bytearray(clip.read_bytes())
    data[victim : victim + 40] = b"\xff" * 40
    hurt, cut = tmp_path / "hurt.mp4", tmp_path / "cut.mp4"
    hurt.write_bytes(data)
    cut.write_bytes(clip.read_bytes()[:-2000])
    with open_video(hurt) as video:
        expected = video.frames_at(range(40))
    given = read_frames_isolated(hurt, range(40))
    assert expected.corrupt.any()
    assert np.array_equal(given.corrupt, expected.corrupt)
    assert np.array_equal(given.pixels, expected.pixels)
    for source, asked in [(cut, [0]), (tmp_path / "gone.mp4", [0]), (clip, [40]), (b"no video", [0]), (clip, None)]:
        with pytest.raises(MediaError) as here, open_video(source) as video:
            video.frames_at(asked)
        with pytest.raises(MediaError) as there:
            read_frames_isolated(source, asked)
        assert type(there.value) is type(here.value)
        assert (there.value.source, there.value.reason, there.value.mend) == (
            here.value.source,
            here.value.reason,
            here.value.mend,
        )
    assert MissingMediaError is type(_error_of(tmp_path / "gone.mp4"))


def _error_of(path: Path) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read_frames_isolated(path, [0])
    return caught.value


def test_a_child_that_hangs_is_killed_at_the_timeout(hanging: str) -> None:
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"never\.mp4: took longer than 2 s\. Raise timeout"):
        read_frames_isolated(hanging, [0], timeout=2, fetch=PATIENT)
    assert 2 <= time.monotonic() - started < 10
    assert children() == []


def test_a_child_that_is_killed_is_an_error_that_names_the_file_and_the_signal(hanging: str) -> None:
    errors = []

    def read() -> None:
        try:
            read_frames_isolated(hanging, [0], timeout=60, fetch=PATIENT)
        except MediaError as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    deadline = time.monotonic() + 30
    while not (found := children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    [child] = found
    os.kill(child, signal.SIGKILL)
    reading.join(30)
    [error] = errors
    assert error.source == hanging
    assert "SIGKILL" in error.reason
    assert children() == []


def test_a_child_that_cannot_even_start_says_why(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(MediaError, match=r"ended with exit code 1"):
        read_frames_isolated(clip, [0])


def test_memory_is_bounded_for_what_the_file_needs(clip: Path) -> None:
    large = {"indices": [0, 1, 2, 3], "size": (4000, 4000)}  # 192 MB of pixels
    with pytest.raises(MediaError, match=r"needs more than memory=134217728 bytes\. Raise memory"):
        read_frames_isolated(clip, **large, memory=128 << 20)
    assert len(read_frames_isolated(clip, [0], memory=128 << 20).intact()) == 1


def test_what_cannot_be_handed_over_is_refused(clip: Path) -> None:
    with clip.open("rb") as file, pytest.raises(MediaError, match="BufferedReader cannot be handed to another process"):
        read_frames_isolated(file, [0])
    with pytest.raises(MediaError, match="Give more than 0"):
        read_frames_isolated(clip, [0], timeout=0)
