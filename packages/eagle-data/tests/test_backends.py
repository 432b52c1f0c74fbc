"""Other backends: what they are known to get wrong is refused before they see it; what they give has our numbers and times."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.errors import MediaError
from eagle_data.video import open_video
from PIL import Image

from .media_files import cut_without_reencoding, decode_everything, number_in, numbered_picture, rotate_mp4, write_video


class Batch:
    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures

    def asnumpy(self) -> np.ndarray:
        return self._pictures


class StandIn:
    """decord's interface over a plain full decode, which counts how often it was opened."""

    opened = 0
    extra = 0

    def __init__(self, source: Any, **options: Any) -> None:
        type(self).opened += 1
        self._pictures, _ = decode_everything(source)

    def __len__(self) -> int:
        return len(self._pictures) + self.extra

    def get_batch(self, numbers: list[int]) -> Batch:
        return Batch(np.stack([self._pictures[number] for number in numbers]))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    reader = type("Reader", (StandIn,), {})
    module = types.ModuleType("decord")
    module.VideoReader, module.cpu = reader, lambda number: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", module)
    return reader


def edit_list(folder: Path) -> Path:
    return cut_without_reencoding(
        write_video(folder / "whole.mp4", frames=60, options={"g": "30", "bf": "2"}), folder / "cut.mp4", 10
    )


def open_groups(folder: Path) -> Path:
    options = {"g": "12", "bf": "3", "x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0", "preset": "medium"}
    return write_video(folder / "open.mp4", frames=60, options=options)


def transport_stream(folder: Path) -> Path:
    return write_video(folder / "v.ts", frames=30)


def avi_with_b(folder: Path) -> Path:
    return write_video(folder / "v.avi", frames=30, codec="mpeg4", options={"bf": "2", "b": "2000000"})


WRONG: list[tuple[Callable[[Path], Path], str]] = [
    (edit_list, "decoded and not displayed"),
    (open_groups, "groups of pictures are open"),
    (transport_stream, "transport stream"),
    (avi_with_b, "AVI with B-frames"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_files_that_decord_reads_wrongly_never_reach_it(
    make: Callable[[Path], Path], words: str, tmp_path: Path, stand_in: type[StandIn]
) -> None:
    path = make(tmp_path)
    with pytest.raises(MediaError, match=f"decord is known to read this wrongly: .*({words}).*Use backend='eagle'"):
        open_video(path, backend="decord")
    assert stand_in.opened == 0
    with open_video(path) as video:
        assert len(video.frames_at([0, 5])) == 2


def test_a_clip_of_a_backend_has_our_numbers_times_and_sizes(tmp_path: Path, stand_in: type[StandIn]) -> None:
    path = write_video(tmp_path / "v.mp4", frames=50, options={"bf": "2", "preset": "medium"})
    with open_video(path, backend="decord", start=1.0) as theirs, open_video(path, start=1.0) as ours:
        assert theirs.metadata == ours.metadata
        wanted = [24, 0, 7, 7]
        for size in (None, (48, 32)):
            frames, expected = theirs.frames_at(wanted, size=size), ours.frames_at(wanted, size=size)
            assert np.abs(frames.pixels.astype(int) - expected.pixels).max() <= 2
            assert np.array_equal(frames.seconds, expected.seconds)
        assert [number_in(picture) for picture in theirs.frames_at(wanted)] == [49, 25, 32, 32]
        assert not theirs.frames_at(wanted).corrupt.any()
    assert stand_in.opened == 1


def test_another_count_of_frames_is_refused(tmp_path: Path, stand_in: type[StandIn]) -> None:
    stand_in.extra = 1
    with pytest.raises(MediaError, match="decord counts 31 frames and 30 are displayed"):
        open_video(write_video(tmp_path / "v.mp4", frames=30), backend="decord")


def test_pictures_that_were_not_turned_upright_are_refused(tmp_path: Path, stand_in: type[StandIn]) -> None:
    path = rotate_mp4(write_video(tmp_path / "v.mp4", frames=10), (0, 1, -1, 0))
    with open_video(path, backend="decord") as video, pytest.raises(MediaError, match="came out 96 x 64, not 64 x 96"):
        video.frames_at([0])


def test_a_closed_backend_says_so(tmp_path: Path, stand_in: type[StandIn]) -> None:
    video = open_video(write_video(tmp_path / "v.mp4", frames=10), backend="decord")
    video.close()
    with pytest.raises(MediaError, match="was closed"):
        video.frames_at([0])


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_a_missing_library_an_unknown_name_and_a_missing_file_are_told_apart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", frames=5)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.decoders", None)
    with pytest.raises(MediaError, match="not installed"):
        open_video(path, backend=name)
    with pytest.raises(MediaError, match="no backend 'opencv'"):
        open_video(path, backend="opencv")


def test_what_is_no_video_and_what_is_missing_are_refused(tmp_path: Path, stand_in: type[StandIn]) -> None:
    pictures = [Image.fromarray(numbered_picture(n)) for n in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(MediaError, match="no video container"):
        open_video(tmp_path / "a.gif", backend="decord")
    with pytest.raises(MediaError, match=r"none\.mp4"):
        open_video(tmp_path / "none.mp4", backend="decord")
    assert stand_in.opened == 0


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("b.mp4", {"bf": "3", "g": "12", "preset": "medium"}), ("v.mkv", {"bf": "2", "preset": "medium"}), ("p.mp4", {"bf": "0"})],
)
def test_the_real_library_gives_the_frames_of_a_full_decode(
    backend: str, name: str, options: dict[str, str], tmp_path: Path
) -> None:
    try:
        importlib.import_module({"decord": "decord", "torchcodec": "torchcodec.decoders"}[backend])
    except (ImportError, RuntimeError, OSError) as error:  # installed without the shared libraries that it needs
        pytest.skip(f"{backend} cannot be used: {str(error).splitlines()[0]}")
    path = write_video(tmp_path / name, frames=60, options=options)
    truth, _ = decode_everything(path)
    with open_video(path, backend=backend) as video:
        wanted = [59, 0, 31, 30, 12, 11, 13, 47]
        frames = video.frames_at(wanted)
        assert [number_in(picture) for picture in frames] == wanted
        assert np.abs(frames.pixels.astype(int) - np.stack([truth[number] for number in wanted])).max() <= 3
