"""Small media files generated for the tests: videos with a known picture for every frame, written through PyAV and Pillow.

Every frame carries its own number as a binary pattern of black and white squares, so that a test can read back which frame it was
given, whatever the codec did to it. No media lies in the repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CELL = 16
BITS = 8


def numbered_picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """uint8 ``[height, width, 3]``: eight squares spell `number` in binary on a moving grey ramp."""
    ramp = (np.add.outer(np.arange(height), np.arange(width)) * 2 + number * 5) % 128 + 64
    picture = np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8)
    for bit in range(BITS):
        row, col = divmod(bit, 4)
        picture[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number that `numbered_picture` wrote into an upright picture of the original size."""
    middles = [picture[row * CELL + CELL // 2, col * CELL + CELL // 2].mean() for row in (0, 1) for col in range(4)]
    return sum(1 << bit for bit, value in enumerate(middles) if value > 127)


def write_video(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    rate: int | Fraction = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    size: tuple[int, int] = (96, 64),
    pix_fmt: str = "yuv420p",
    container_options: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """A video of `frames` numbered pictures. `pts` (in `time_base`) makes the rate variable or the start late."""
    width, height = size
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "20", **(options or {})} if codec == "libx264" else options or {}
        base = time_base or 1 / Fraction(rate)
        stream.codec_context.time_base = base
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width, height), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (number if pts is None else pts[number]), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            for block in range(frames // 4):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 8000, block * 1024
                container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return path


def rotate_mp4(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write the display matrix ``(a, b, c, d)`` (whole numbers) into the first track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    at = header + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    data[at : at + 36] = values.tobytes()
    path.write_bytes(bytes(data))
    return path


def decode_everything(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """The truth: every displayed frame by plain sequential decoding, with seconds from the first."""
    pictures, seconds = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pictures.append(frame.to_ndarray(format="rgb24", interpolation="BICUBIC"))
            seconds.append(float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base is not None else 0.0)
    return pictures, [second - seconds[0] for second in seconds]


def cut_without_reencoding(source: Path, target: Path, first: int, time_base: Fraction = Fraction(1, 25)) -> Path:
    """Copy an MP4's packets so that display starts at picture `first`, in the middle of a GOP: the muxer writes an edit list."""
    with av.open(str(source)) as before, av.open(str(target), "w", container_options={"avoid_negative_ts": "disabled"}) as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        assert stream.time_base is not None
        shift = int(first * time_base / stream.time_base)
        for packet in before.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                after.mux(packet)
    return target
