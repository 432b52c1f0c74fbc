"""Exact frames: every container against a plain sequential decode, and every damaged file against silence."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import InvalidDataError
from eagle_data.errors import MediaError
from eagle_data.pixels import frame_pixels
from eagle_data.video import Video, VideoMetadata, open_video, probe_video, read_frames
from PIL import Image

from .media_files import cut_without_reencoding, decode_everything, number_in, numbered_picture, rotate_mp4, write_video

FRAMES = 40
B_FRAMES = {"bf": "3", "g": "12"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}
MS = Fraction(1, 1000)
UNEVEN = list(accumulate(17 + 31 * (i % 5) for i in range(FRAMES)))
LATE = [5000 + 40 * i for i in range(FRAMES)]

FILES: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"options": B_FRAMES},
    "b_frames.mkv": {"options": B_FRAMES},
    "b_frames.ts": {"options": B_FRAMES},
    "b_frames.avi": {"options": B_FRAMES},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "no_keyframes.ts": {"options": REFRESH},
    "variable.mp4": {"options": B_FRAMES, "pts": UNEVEN, "time_base": MS},
    "variable.mkv": {"options": B_FRAMES, "pts": UNEVEN, "time_base": MS},
    "late.mp4": {"options": B_FRAMES, "pts": LATE, "time_base": MS},
    "late.mkv": {"options": B_FRAMES, "pts": LATE, "time_base": MS},
    "fragments.mp4": {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "sound.mp4": {"options": B_FRAMES, "sound": True},
    "odd_444.mp4": {"options": B_FRAMES, "size": (97, 65), "pix_fmt": "yuv444p"},
    "ten_bit.mp4": {"options": B_FRAMES, "pix_fmt": "yuv420p10le"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
}


def intact(video: Video, indices: Any = None, **options: Any) -> np.ndarray:
    """The pixels of frames, or a MediaError when one is damaged."""
    return video.frames_at(indices, **options).intact()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return write_video(folder / "clip.mp4", FRAMES, options=B_FRAMES)


@pytest.mark.parametrize("name", FILES)
def test_every_frame_of_every_container_equals_a_full_sequential_decode(folder: Path, name: str) -> None:
    path = write_video(folder / name, FRAMES, **FILES[name])
    truth, seconds = decode_everything(path)
    if path.suffix == ".avi":  # AVI stores no times: a frame's number is its time.
        seconds = [number / 25 for number in range(FRAMES)]
    assert [number_in(picture) for picture in truth] == list(range(FRAMES))
    with open_video(path) as video:
        assert video.metadata.frames == FRAMES
        assert np.allclose(video.timestamps, seconds, atol=1e-6)
        for number in (0, FRAMES - 1, 11, 12, 13, 22, 23, 24, 25, 30, 35, 1):
            assert np.array_equal(intact(video, [number])[0], truth[number]), f"frame {number} alone"
        order = np.random.default_rng(0).integers(0, FRAMES, 25)
        assert np.array_equal(intact(video, order), np.stack([truth[number] for number in order]))
        assert np.array_equal(intact(video, range(FRAMES)), np.stack(truth))


def test_bytes_give_the_same_frames_as_the_file(clip: Path) -> None:
    assert probe_video(clip.read_bytes()) == probe_video(clip)
    assert np.array_equal(read_frames(clip.read_bytes(), [3, 30]), read_frames(clip, [3, 30]))
    assert np.array_equal(read_frames(clip.as_uri(), [3]), read_frames(str(clip), [3]))


def test_metadata_is_exact(clip: Path) -> None:
    assert probe_video(clip) == VideoMetadata(frames=FRAMES, fps=25.0, duration=1.6, width=96, height=64, rotation=0)


def test_the_nominal_rate_survives_millisecond_timestamps(folder: Path) -> None:
    rate = Fraction(30000, 1001)
    assert probe_video(write_video(folder / "ntsc.mkv", 20, rate=rate)).fps == pytest.approx(float(rate), abs=1e-9)


def test_a_variable_rate_reports_the_mean(folder: Path) -> None:
    metadata = probe_video(write_video(folder / "mean.mp4", FRAMES, pts=UNEVEN, time_base=MS))
    assert metadata.fps == pytest.approx((FRAMES - 1) / ((UNEVEN[-1] - UNEVEN[0]) / 1000), rel=1e-6)


def test_the_pictures_before_an_edit_list_begins_are_not_frames(folder: Path, clip: Path) -> None:
    cut = cut_without_reencoding(clip, folder / "cut.mp4", 17)
    with open_video(cut) as video:
        assert video.metadata.frames == FRAMES - 17
        assert video.timestamps[0] == 0
        assert [number_in(picture) for picture in intact(video, [0, 1, 10, 22])] == [17, 18, 27, 39]


def test_a_second_means_the_frame_on_display_then(folder: Path) -> None:
    path = write_video(folder / "seconds.mp4", 4, pts=[0, 100, 500, 700], time_base=MS, options=B_FRAMES)
    with open_video(path) as video:
        shown = intact(video, seconds=[0.0, 0.0999, 0.1, 0.4999, 0.5, 0.699, 0.7])
        assert [number_in(picture) for picture in shown] == [0, 0, 1, 1, 2, 2, 3]
        for outside in (-0.01, video.metadata.duration + 0.01):
            with pytest.raises(MediaError, match=r"seconds\.mp4: shows nothing at"):
                intact(video, seconds=[outside])


def test_a_clip_counts_its_own_frames_and_keeps_the_files_clock(clip: Path) -> None:
    with open_video(clip, start=0.4, end=0.8) as video:
        assert video.metadata.frames == 10
        assert video.metadata.fps == pytest.approx(25)
        assert video.metadata.duration == pytest.approx(0.4)
        assert video.timestamps.tolist() == pytest.approx([0.4 + i / 25 for i in range(10)])
        assert [number_in(picture) for picture in intact(video, [0, 9])] == [10, 19]
        assert number_in(intact(video, seconds=[0.5])[0]) == 12
        with pytest.raises(MediaError, match="there is no frame 10"):
            intact(video, [10])
    assert probe_video(clip, start=0.41).frames == FRAMES - 11
    assert number_in(read_frames(clip, [0], start=0.41)[0]) == 11


@pytest.mark.parametrize(("start", "end"), [(1.7, None), (0.5, 0.5), (0.8, 0.4), (None, 0.0)])
def test_an_empty_clip_is_an_error(clip: Path, start: float | None, end: float | None) -> None:
    with pytest.raises(MediaError, match=r"clip\.mp4: no frame appears"):
        probe_video(clip, start=start, end=end)


@pytest.mark.parametrize(
    ("matrix", "rotation", "turn"),
    [
        ((0, 1, -1, 0), 90, lambda p: np.rot90(p, -1)),
        ((-1, 0, 0, -1), 180, lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), 270, lambda p: np.rot90(p, 1)),
        ((1, 0, 0, -1), 0, lambda p: p[::-1]),
    ],
    ids=["90", "180", "270", "mirrored"],
)
def test_rotation_and_mirroring_are_applied(folder: Path, matrix: tuple[int, int, int, int], rotation: int, turn: Any) -> None:
    path = write_video(folder / f"turned{rotation}.mp4", 3)
    plain, _ = decode_everything(path)
    rotate_mp4(path, matrix)
    with open_video(path) as video:
        assert video.metadata.rotation == rotation
        expected = turn(plain[2])
        assert (video.metadata.height, video.metadata.width) == expected.shape[:2]
        assert np.array_equal(intact(video, [2])[0], expected)


def test_resizing_while_reading_equals_resizing_afterwards(clip: Path) -> None:
    small = read_frames(clip, [4, 20], size=(32, 32))
    assert small.shape == (2, 32, 32, 3)
    assert np.array_equal(frame_pixels(small, tile_size=32), frame_pixels(read_frames(clip, [4, 20]), tile_size=32))
    assert read_frames(clip, [4], size=(50, 20)).shape == (1, 20, 50, 3)


@pytest.mark.parametrize("colorspace", [1, 5, 9], ids=["bt709", "bt601", "bt2020"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_follow_the_streams_matrix_and_range(folder: Path, colorspace: int, full: bool) -> None:
    path, (y, u, v) = folder / f"colour{colorspace}{full}.mp4", (120, 90, 180)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, 2 if full else 1
        frame = av.VideoFrame(32, 32, "yuv444p")
        for plane, value in zip(frame.planes, (y, u, v), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts, frame.colorspace, frame.color_range = 0, colorspace, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[colorspace]
    luma = y / 255 if full else (y - 16) / 219
    cb, cr = ((c - 128) / (255 if full else 224) for c in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    assert np.abs(read_frames(path, [0])[0, 16, 16] - 255 * np.array([r, g, b])).max() <= 2


# damaged and hostile files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("moov_last.mp4", {}),
        ("moov_first.mp4", {"movflags": "faststart"}),
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("plain.mkv", {}),
        ("plain.avi", {}),
    ],
)
def test_a_truncated_file_is_an_error_that_names_it(folder: Path, name: str, options: dict[str, str], share: float) -> None:
    path = write_video(folder / f"cut_{share}_{name}", FRAMES, options=B_FRAMES, container_options=options)
    assert probe_video(path).frames == FRAMES
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError, match=f"cut_{share}_{name}: (is truncated|cannot be opened)"):
        read_frames(path, [FRAMES - 1])


def test_frames_that_the_decoder_marks_as_damaged_are_refused_and_the_others_are_its_own(folder: Path, clip: Path) -> None:
    rng = np.random.default_rng(3)
    refused = delivered = 0
    for trial in range(6):
        data = bytearray(clip.read_bytes())
        for place in rng.integers(data.index(b"mdat") + 1200, data.index(b"moov") - 8, 3):
            data[place] ^= 0xFF
        path = folder / f"damaged{trial}.mp4"
        path.write_bytes(bytes(data))
        decoded = decode_what_there_is(path)
        with open_video(path) as video:
            for number in range(FRAMES):
                picture, marked = decoded.get(number, (np.empty(0), True))
                try:
                    frame = intact(video, [number])[0]
                except MediaError:
                    refused += 1
                else:
                    assert not marked, f"frame {number} is marked as damaged"
                    assert np.array_equal(frame, picture)
                    delivered += 1
    assert refused > 0
    assert delivered > 0


def test_a_picture_that_leans_on_a_damaged_one_is_refused_even_when_it_is_shown_before_it(folder: Path, clip: Path) -> None:
    truth, _ = decode_everything(clip)
    rng = np.random.default_rng(0)
    hurt = 0
    for trial in range(12):
        data = bytearray(clip.read_bytes())
        data[rng.integers(data.index(b"mdat") + 1200, data.index(b"moov") - 8)] ^= 0xFF
        path = folder / f"hurt{trial}.mp4"
        path.write_bytes(bytes(data))
        decoded = decode_what_there_is(path)
        if len(decoded) == FRAMES and not any(marked for _, marked in decoded.values()):
            continue  # The damage decodes to a wrong picture without any sign; nothing can know.
        hurt += 1
        with open_video(path) as video:
            for number in range(FRAMES):
                try:
                    frame = intact(video, [number])[0]
                except MediaError:
                    continue
                assert np.array_equal(frame, truth[number]), f"frame {number} is wrong and was delivered"
    assert hurt >= 3


def decode_what_there_is(path: Path) -> dict[int, tuple[np.ndarray, bool]]:
    """By frame number: the picture of a sequential decode that goes on after errors, and whether the decoder marked it."""
    found = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = stream.codec_context.decode(packet)
            except InvalidDataError:
                continue
            for frame in frames:
                number = round(float(frame.time or 0) * 25)
                found[number] = (frame.to_ndarray(format="rgb24"), frame.is_corrupt)
    return found


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>" * 40, bytes(range(256)) * 20], ids=["empty", "html", "random"]
)
def test_what_is_no_video_is_an_error(folder: Path, content: bytes) -> None:
    path = folder / "no_video.mp4"
    path.write_bytes(content)
    for source, name in ((path, r"no_video\.mp4"), (content, "bytes")):
        with pytest.raises(MediaError, match=f"{name}.*cannot be opened as a video"):
            probe_video(source)


def test_a_sound_file_has_no_video_stream(folder: Path) -> None:
    path = folder / "sound.wav"
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = folder / "sound.mp4"
    with pytest.raises(MediaError, match=r"sound\.mp4: has no video stream"):
        probe_video(path)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.6,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{clip}'\n",
    ],
    ids=["playlist", "concat"],
)
def test_a_local_file_can_not_make_the_reader_open_another(folder: Path, clip: Path, text: str) -> None:
    path = folder / "pointer.mp4"
    path.write_text(text.format(clip=clip))
    for source in (path, path.read_bytes()):
        with pytest.raises(MediaError, match="cannot be opened"):
            probe_video(source)


@pytest.mark.parametrize(
    "name", ["concat:{clip}|{clip}", "subfile,,start,0,end,0,,:{clip}", "ftp://127.0.0.1:9/a.mp4", "nowhere.mp4"]
)
def test_only_existing_local_paths_are_opened(clip: Path, name: str) -> None:
    with pytest.raises(MediaError, match="no such file"):
        probe_video(name.format(clip=clip))


@pytest.mark.parametrize("index", [-1, FRAMES, 10**9])
def test_a_frame_outside_the_video_is_an_error(clip: Path, index: int) -> None:
    with pytest.raises(MediaError, match=f"has {FRAMES} frames, there is no frame {index}"):
        read_frames(clip, [0, index])


def test_asking_for_nothing_gives_an_empty_array(clip: Path) -> None:
    assert read_frames(clip, []).shape == (0, 64, 96, 3)


def test_a_closed_video_keeps_its_metadata_and_refuses_frames(clip: Path) -> None:
    with open_video(clip) as video:
        pass
    assert video.metadata.frames == FRAMES
    with pytest.raises(MediaError, match="closed"):
        intact(video, [0])


def test_opening_many_times_leaks_no_file(clip: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        probe_video(clip)
    assert len(list(descriptors.iterdir())) == before


# animations, folders and lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_a_video_with_its_own_times(folder: Path, kind: str) -> None:
    path = folder / f"animation.{kind.lower()}"
    pictures = [Image.fromarray(numbered_picture(number)).convert("L").convert("RGB") for number in range(6)]
    durations = [100, 50, 200, 40, 300, 100]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=durations, **lossless)
    for source in (path, path.read_bytes()):
        with open_video(source) as video:
            assert video.metadata.frames == 6
            assert video.metadata.duration == pytest.approx(0.79)
            assert video.timestamps.tolist() == pytest.approx([0, 0.1, 0.15, 0.35, 0.39, 0.69])
            assert [number_in(picture) for picture in intact(video, [5, 0, 3, 3])] == [5, 0, 3, 3]
            assert number_in(intact(video, seconds=[0.36])[0]) == 3


def test_transparent_animations_lie_on_white(folder: Path) -> None:
    path = folder / "clear.gif"
    frames = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(2)]
    frames[1].paste((255, 0, 0, 255), (0, 0, 8, 16))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
    shown = read_frames(path, [0, 1])
    assert shown[0].min() == 255
    assert shown[1, 8, 4].tolist() == [255, 0, 0]
    assert shown[1, 8, 12].tolist() == [255, 255, 255]


def test_a_folder_of_frames_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (0, 1, 2, 9, 10, 11):
        Image.fromarray(numbered_picture(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    with open_video(tmp_path, fps=2.0) as video:
        assert video.metadata == VideoMetadata(frames=6, fps=2.0, duration=3.0, width=96, height=64, rotation=0)
        assert [number_in(picture) for picture in intact(video, range(6))] == [0, 1, 2, 9, 10, 11]
    assert probe_video(tmp_path).fps == 1.0


def test_a_list_of_pictures_may_mix_paths_bytes_and_pillow_images(tmp_path: Path) -> None:
    pictures = [Image.fromarray(numbered_picture(number)) for number in range(3)]
    pictures[0].save(tmp_path / "0.png")
    pictures[1].save(tmp_path / "1.png")
    sources = [tmp_path / "0.png", (tmp_path / "1.png").read_bytes(), pictures[2]]
    assert [number_in(picture) for picture in read_frames(sources, [2, 1, 0])] == [2, 1, 0]
    assert read_frames(sources, [0], start=1.0).shape == (1, 64, 96, 3)


def test_pictures_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    sources = [Image.new("RGB", (10, 10)), Image.new("RGB", (20, 10))]
    with pytest.raises(MediaError, match="Pass size="):
        read_frames(sources, [0, 1])
    assert read_frames(sources, [0, 1], size=(8, 8)).shape == (2, 8, 8, 3)


def test_a_missing_picture_of_a_list_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"b\.png: no such file"):
        read_frames([tmp_path / "a.png", tmp_path / "b.png"], [1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="empty: holds no pictures"):
        probe_video(tmp_path / "empty")


def test_a_truncated_animation_is_an_error(tmp_path: Path) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), dtype=np.uint8)) for i in range(3)]
    path = tmp_path / "cut.gif"
    noise[0].save(path, save_all=True, append_images=noise[1:], duration=100)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(MediaError, match=r"cut\.gif"):
        read_frames(path, [2])
