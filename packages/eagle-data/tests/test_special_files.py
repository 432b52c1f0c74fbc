"""Pipes, devices and folders where a file should be: refused at once, by every reader, and never waited for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eagle_data.errors import MediaError
from eagle_data.images import image_bytes, image_size, load_image
from eagle_data.video import open_video
from PIL import Image


def outcome(call: Callable[[], Any]) -> BaseException | None:
    """What `call` raises, in a thread that may be left behind: a reader that waits for a writer would never come back."""
    found: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except MediaError as error:
            found.append(error)
        else:
            found.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it did not come back within 10 s"
    return found[0]


@pytest.mark.parametrize("name", ["pipe.png", "pipe.mp4", "pipe.gif", "pipe.tar", "pipe.tar::a.png", "pipe.parquet::a::0"])
@pytest.mark.parametrize("reader", [load_image, image_size, image_bytes, open_video])
def test_a_pipe_is_refused_at_once(reader: Callable[[Any], Any], name: str, tmp_path: Path):
    os.mkfifo(tmp_path / name.partition("::")[0])
    error = outcome(lambda: reader(str(tmp_path / name)))
    assert isinstance(error, MediaError)
    assert "a pipe" in error.reason
    assert "pipe." in error.source


@pytest.mark.parametrize("key", ["tar", "parquet"])
def test_a_pipe_named_by_a_mapping_is_refused(key: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    inner = {"tar": {"tar_member": "a"}, "parquet": {"parquet_column": "a", "parquet_row": 0}}[key]
    assert outcome(lambda: load_image({f"{key}_file": str(tmp_path / "pipe"), **inner})) is not None


@pytest.mark.parametrize("reader", [load_image, image_size, open_video])
def test_a_device_is_refused(reader: Callable[[Any], Any]):
    assert outcome(lambda: reader("/dev/zero")) is not None


def test_a_folder_is_no_picture_but_may_be_a_video(tmp_path: Path):
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    with pytest.raises(MediaError, match=r"is not a file but a folder\. Give a file"):
        load_image(tmp_path)
    with open_video(tmp_path) as video:
        assert video.metadata.frames == 1
    os.mkfifo(tmp_path / "2.png")
    with open_video(tmp_path) as video:
        assert outcome(lambda: video.frames_at([1])) is not None
