"""Every reader behind one interface: open a file and deliver frames at a size, each in its own best documented way, exactly.

Promises: a reader's package is imported by `load` and nowhere else, so that any interpreter that has it can measure it. Each gets
the same number of threads. Not for: timing (`worker.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np

__all__ = ["EXACT_INDEX", "READERS", "Opened", "Reader"]

EXACT_INDEX = ("eagle", "eagle_pillow", "torchcodec", "video-reader-rs", "decord", "decord2")
"""Readers that know every frame's time and place once a file is open; opencv knows what the header says."""


class Opened(Protocol):
    """An open video; `frames` is how many frames the reader says it has."""

    frames: int

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 ``[n, height, width, 3]`` at the size given when it was opened."""
        ...


class Reader(Protocol):
    """A reader's package, imported: opens a path for pictures of ``size = (width, height)`` with so many threads."""

    def __call__(self, path: str, size: tuple[int, int], threads: int) -> Opened: ...


class Eagle:
    """This package, scaling the stored planes with swscale as its peers do."""

    resize: Literal["pillow", "swscale"] = "swscale"

    def __init__(self, path: str, size: tuple[int, int], threads: int) -> None:
        from eagle_data import open_video

        self.video, self.size = open_video(path, threads=threads), size
        self.frames = self.video.metadata.frames
        self.decoded: int | None = None

    def read(self, indices: Sequence[int]) -> np.ndarray:
        found = self.video.frames_at(indices, size=self.size, resize=self.resize)
        self.decoded = found.decoded
        if found.corrupt.any():
            raise ValueError("frames of an intact file are marked as corrupt")
        return found.pixels

    def segments(self, count: int) -> tuple[np.ndarray, list[int]]:
        """One frame of each of `count` equal segments, and which they are."""
        found = self.video.segments(count, size=self.size, resize=self.resize)
        self.decoded = found.decoded
        return found.pixels, found.indices.tolist()


class EaglePillow(Eagle):
    """This package with its default: RGB first, then Pillow's bicubic, the pixels of the released processor."""

    resize = "pillow"


class TorchCodec:
    """torchcodec, exact seeks, resized by its own transform."""

    def __init__(self, path: str, size: tuple[int, int], threads: int) -> None:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        from torchcodec.transforms import Resize  # pyright: ignore[reportMissingImports]

        self.decoder = VideoDecoder(
            path,
            dimension_order="NHWC",
            num_ffmpeg_threads=threads,
            seek_mode="exact",
            transforms=[Resize((size[1], size[0]))],
        )
        self.frames = len(self.decoder)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self.decoder.get_frames_at(indices=list(indices)).data.numpy()


class VideoReaderRs:
    """video-reader-rs, resized by its own filter, choosing between seeking and decoding in order by itself."""

    def __init__(self, path: str, size: tuple[int, int], threads: int) -> None:
        from video_reader import PyVideoReader  # pyright: ignore[reportMissingImports]

        self.reader = PyVideoReader(path, threads=threads, target_width=size[0], target_height=size[1])
        self.frames = int(self.reader.get_shape()[0])

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self.reader.get_batch(list(indices))


class Decord:
    """decord or decord2, which is imported by the same name, resized by its own filter."""

    def __init__(self, path: str, size: tuple[int, int], threads: int) -> None:
        from decord import VideoReader  # pyright: ignore[reportMissingImports]

        self.reader = VideoReader(path, width=size[0], height=size[1], num_threads=threads)
        self.frames = len(self.reader)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self.reader.get_batch(list(indices)).asnumpy()


class OpenCv:
    """opencv, one seek a frame, resized by area."""

    def __init__(self, path: str, size: tuple[int, int], threads: int) -> None:
        import cv2  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(threads)
        self.cv2, self.size = cv2, size
        self.capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        self.frames = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def read(self, indices: Sequence[int]) -> np.ndarray:
        pictures = np.empty((len(indices), self.size[1], self.size[0], 3), np.uint8)
        for place, index in enumerate(indices):
            self.capture.set(self.cv2.CAP_PROP_POS_FRAMES, index)
            there, picture = self.capture.read()
            if not there:
                raise ValueError(f"frame {index} was not given")
            resized = self.cv2.resize(picture, self.size, interpolation=self.cv2.INTER_AREA)
            self.cv2.cvtColor(resized, self.cv2.COLOR_BGR2RGB, dst=pictures[place])
        return pictures


READERS: dict[str, tuple[tuple[str, ...], str, Callable[..., Any]]] = {
    "eagle": (("av", "PIL.Image", "eagle_data.video", "eagle_data.media.*"), "eagle-data", Eagle),
    "eagle_pillow": (("av", "PIL.Image", "eagle_data.video", "eagle_data.media.*"), "eagle-data", EaglePillow),
    "torchcodec": (("torchcodec.decoders", "torchcodec.transforms"), "torchcodec", TorchCodec),
    "video-reader-rs": (("video_reader",), "video_reader-rs", VideoReaderRs),
    "decord": (("decord",), "decord", Decord),
    "decord2": (("decord",), "decord2", Decord),
    "opencv": (("cv2",), "opencv-python-headless", OpenCv),
}
"""By name: the modules to import before the clock starts (``.*``: all of a package), the distribution, and the reader."""


def version_of(name: str) -> str:
    """The version of a reader's distribution. Raises what importlib.metadata raises when it is not installed."""
    return version(READERS[name][1])
