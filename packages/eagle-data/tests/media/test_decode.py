"""Decoding by plan: bit-exact although packets are left out, bounded in work and time, honest about damage and stale indices."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.errors import MediaError
from eagle_data.media import decode
from eagle_data.media.frame_index import FrameIndex
from eagle_data.media.nal_units import nal_codec
from eagle_data.video import open_video, read_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..media_files import cut_without_reencoding, decode_everything, number_in, write_video

FRAMES = 60
X264 = "keyint=20:min-keyint=20:scenecut=0:"
PYRAMID = {"preset": "medium", "x264-params": X264 + "bframes=4:b-adapt=0:b-pyramid=normal:ref=4"}
FILES: dict[str, dict[str, Any]] = {
    "no_b.mp4": {"options": {"x264-params": X264 + "bframes=0"}},
    "b_frames.mp4": {"options": {"x264-params": X264 + "bframes=3:b-adapt=0"}},
    "pyramid.mp4": {"options": PYRAMID},
    "open_gop.mp4": {"options": {"x264-params": X264 + "open-gop=1:bframes=3:b-adapt=0:b-pyramid=normal"}},
    "slices.mp4": {"options": {"x264-params": X264 + "bframes=3:slices=3"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=20:bframes=4:log-level=none", "preset": "ultrafast"}},
    "layers.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=20:bframes=7:temporal-layers=3:log-level=none"}},
    "pyramid.ts": {"options": PYRAMID},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "realtime"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "20", "deadline": "realtime", "cpu-used": "8"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decode")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return write_video(folder / "clip.mp4", FRAMES, options={"x264-params": X264 + "bframes=3:b-adapt=0"})


@pytest.mark.parametrize("name", FILES)
def test_sparse_frames_are_bit_exact_although_packets_are_left_out(folder: Path, name: str) -> None:
    path = write_video(folder / name, FRAMES, **FILES[name])
    truth = np.stack(decode_everything(path)[0])
    chance = np.random.default_rng(7)
    with open_video(path) as video:
        assert video.metadata.frames == FRAMES
        for _ in range(25):
            chosen = chance.choice(FRAMES, chance.integers(1, 6), replace=False)
            found = video.frames_at(chosen)
            assert not found.corrupt.any()
            assert np.array_equal(found.pixels, truth[chosen]), f"frames {chosen}"


@pytest.mark.parametrize("name", ["b_frames.mp4", "pyramid.mp4", "hevc.mp4"])
def test_pictures_that_nothing_leans_on_are_not_decoded(folder: Path, name: str) -> None:
    path = write_video(folder / f"work_{name}", FRAMES, **FILES[name])
    with open_video(path) as video:
        index = video.index
        assert index is not None
        nal = nal_codec(index.stream.codec, index.stream.extradata)
        file = path.read_bytes()
        data = [file[o : o + s] for o, s in zip(index.offset.tolist(), index.size.tolist(), strict=True)]
        assert nal is not None
        free = np.array([nal.droppable(packet) for packet in data])
        assert 0.2 < free.mean() < 0.9
        for frame in range(0, FRAMES, 7):
            target = int(index.display[frame])
            start = int(decode_start(index, target))
            needed = (~free[start : target + 1]).sum() + free[target]
            assert video.frames_at([frame]).decoded == needed


def decode_start(index: FrameIndex, target: int) -> int:
    shown_before = index.keyframe & (index.pts <= index.pts[target])
    return int(np.flatnonzero(shown_before).max())


def test_a_temporal_layer_that_others_lean_on_is_kept() -> None:
    nal = nal_codec("hevc", b"")
    assert nal is not None
    assert not nal.droppable(b"\0\0\0\1" + bytes([0 << 1, 1]) + b"xx"), "without parameter sets the highest layer is unknown"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, FRAMES - 1), max_size=12), st.integers(1, 4))
def test_any_order_with_duplicates_and_any_number_of_threads_gives_the_frames_asked(
    clip: Path, indices: list[int], threads: int
) -> None:
    with open_video(clip, threads=threads) as video:
        found = video.frames_at(indices)
        assert [number_in(picture) for picture in found] == indices
        assert found.indices.tolist() == indices
        assert np.allclose(found.seconds, np.array(indices) / 25)


def test_scaling_while_decoding_stays_near_to_scaling_afterwards(clip: Path) -> None:
    with open_video(clip) as video:
        fast = video.frames_at([3, 30], size=(48, 32), resize="swscale").pixels
        exact = video.frames_at([3, 30], size=(48, 32)).pixels
    assert fast.shape == exact.shape == (2, 32, 48, 3)
    assert np.abs(fast.astype(int) - exact).mean() < 3
    with pytest.raises(MediaError, match="resize='nearest'"):
        video.frames_at([3], size=(48, 32), resize="nearest")  # pyright: ignore[reportArgumentType]


def test_unrotated_frames_are_as_stored(folder: Path) -> None:
    from ..media_files import rotate_mp4

    path = write_video(folder / "turned.mp4", 3)
    rotate_mp4(path, (0, 1, -1, 0))
    with open_video(path) as video:
        upright, stored = video.frames_at([2]).pixels, video.frames_at([2], rotate=False).pixels
        small = video.frames_at([2], size=(32, 48), resize="swscale").pixels
    assert np.array_equal(upright[0], np.rot90(stored[0], -1))
    assert number_in(stored[0]) == 2
    assert small.shape == (1, 48, 32, 3)


# damage, budgets, stored indices ------------------------------------------------------------------------------------------------


def test_damaged_frames_are_marked_and_the_others_are_right(folder: Path, clip: Path) -> None:
    truth = np.stack(decode_everything(clip)[0])
    data = bytearray(clip.read_bytes())
    with open_video(bytes(data)) as video:
        index = video.index
    assert index is not None
    start, size = int(index.offset[20]), int(index.size[20])
    data[start + 40 : start + size] = bytes(size - 40)
    with open_video(bytes(data)) as video:
        found = video.frames_at(range(FRAMES))
        assert 0 < found.corrupt.sum() <= 21
        assert np.array_equal(found.pixels[~found.corrupt], truth[~found.corrupt])
        with pytest.raises(MediaError, match=rf"frame \d+ is damaged \({found.corrupt.sum()} of the 60"):
            found.intact()


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts"])
def test_a_cut_file_is_refused_with_a_count_or_gives_its_whole_frames(folder: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name == "cut.mp4" else {}
    whole = write_video(folder / f"whole_{name}", FRAMES, options={"bf": "3", "g": "12"}, container_options=options)
    truth = decode_everything(whole)
    data = whole.read_bytes()[: int(whole.stat().st_size * 0.6)]
    if name != "cut.ts":  # A transport stream does not say how long it is.
        with pytest.raises(MediaError, match=r"truncated.*with \d+ (of its 60 )?frames whole"):
            open_video(data)
    with open_video(data, truncated=True) as video:
        assert 20 < video.metadata.frames < FRAMES
        found = video.frames_at(range(video.metadata.frames))
        for picture, second, corrupt in zip(found, found.seconds, found.corrupt, strict=True):
            if not corrupt:
                number = int(np.argmin(np.abs(np.array(truth[1]) - second)))
                assert np.array_equal(picture, truth[0][number])
        assert (~found.corrupt).sum() > 20


def test_a_budget_ends_a_call_with_an_error(clip: Path) -> None:
    with open_video(clip, budget=1000) as video:
        assert len(video.frames_at(range(FRAMES))) == FRAMES
    with open_video(clip, budget=0) as video, pytest.raises(MediaError, match="took longer than 0 s"):
        video.frames_at([FRAMES - 1])


def test_a_stored_index_opens_without_touching_the_file(tmp_path: Path, clip: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    with open_video(copy) as video:
        expected = video.frames_at([7, 50]).pixels
        assert video.index is not None
        video.index.save(tmp_path / "copy.idx")
        times = video.timestamps
    copy.rename(tmp_path / "away.mp4")
    with open_video(copy, index=tmp_path / "copy.idx") as video:
        assert np.array_equal(video.timestamps, times)
        assert video.metadata.frames == FRAMES
        (tmp_path / "away.mp4").rename(copy)
        assert np.array_equal(video.frames_at([7, 50]).pixels, expected)


@pytest.mark.parametrize("name", ["stale.mp4", "stale.ts"])
def test_the_index_of_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 20)
    with open_video(path) as video:
        index = video.index
    with open_video(path, index=index) as video:
        assert number_in(video.frames_at([13]).pixels[0]) == 13
    write_video(path, 30)
    with open_video(path, index=index) as video, pytest.raises(MediaError, match="has changed since its index was made"):
        video.frames_at([13])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_a_damaged_index_is_an_error_or_an_index(clip: Path, place: int, value: int, length: int) -> None:
    with open_video(clip) as video:
        assert video.index is not None
        data = bytearray(video.index.to_bytes())
    data[place % len(data)] = value
    for changed in (bytes(data), bytes(data[: length % len(data)])):
        try:
            FrameIndex.from_bytes(changed)
        except MediaError:
            continue
        assert len(changed) == len(data)


# sources ------------------------------------------------------------------------------------------------------------------------


def test_a_file_object_is_read_where_it_lies_and_stays_open(folder: Path) -> None:
    for name in ("object.mp4", "object.ts"):
        path = write_video(folder / name, 20)
        with path.open("rb") as file:
            assert np.array_equal(read_frames(file, [3, 11]), read_frames(path, [3, 11]))
            assert not file.closed
    assert np.array_equal(read_frames(io.BytesIO(path.read_bytes()), [3]), read_frames(path, [3]))


def test_a_cut_in_the_middle_of_a_gop_is_decoded_from_before_it(folder: Path, clip: Path) -> None:
    cut = cut_without_reencoding(clip, folder / "cut_edit.mp4", 23)
    with open_video(cut) as video:
        assert [number_in(picture) for picture in video.frames_at([0, 5, 36])] == [23, 28, 59]


def test_an_error_in_one_worker_ends_the_call(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("in a worker")

    monkeypatch.setattr(decode, "_run_until_sound", broken)
    with open_video(clip, threads=2) as video, pytest.raises(RuntimeError, match="in a worker"):
        video.frames_at([0, 25, 50])
