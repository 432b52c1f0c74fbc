"""Exact frames of a video: what is in it, and the frames asked for, by number or by second.

Promises that frame i is the i-th displayed frame (B-frames, variable rate, edit lists and non-zero starts included), upright, and
that a call returns exactly the frames asked for or raises a MediaError naming the file. Choosing frames is `eagle_data.sampling`;
containers are read by `video_container` (PyAV), animations and lists of pictures by `stills`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from .errors import MediaError, MissingMediaError
from .images import ImageSource, local_path

__all__ = ["Video", "VideoMetadata", "VideoSource", "open_video", "probe_video", "read_frames"]

VideoSource: TypeAlias = "str | Path | bytes | Sequence[ImageSource]"

_ANIMATION_MAGIC = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")
# The same instant reached by two routes (index / rate, pts * time base) differs by less; two frames never lie this close.
_SAME_INSTANT = 1e-6


@dataclass(frozen=True)
class VideoMetadata:
    """What a video (or the clip of it) holds.

    Attributes:
        frames: displayed frames, exact.
        fps: frames per second; for a variable rate the mean.
        duration: seconds from the first frame's appearance to the end of the last frame.
        width: pixels as displayed, after rotation.
        height: pixels as displayed, after rotation.
        rotation: degrees clockwise (0, 90, 180 or 270) that were applied to the stored pictures.
    """

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    rotation: int


class FrameReader(Protocol):
    """What a kind of source must offer; `Video` does the rest.

    Attributes:
        name: for errors.
        times: float64 ``[frames + 1]`` seconds, the first displayed frame at 0; the last entry is the end of the last frame.
        rate: nominal frames per second, or None when only the times are known.
        width, height: as displayed.
        rotation: degrees clockwise that were applied.
    """

    name: str
    times: np.ndarray
    rate: float | None
    width: int
    height: int
    rotation: int

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(number, uint8 [height, width, 3])`` for the ascending, distinct frame numbers `wanted`, upright and
        resized."""
        ...

    def close(self) -> None:
        """Release the file; calling twice is allowed."""
        ...


class Video:
    """An open video, or the clip ``start <= t < end`` of it. Use it as a context manager; not shared between threads.

    Attributes:
        metadata: of the clip when there is one, else of the file.
        timestamps: float64 ``[metadata.frames]``, seconds since the file's first displayed frame (a clip keeps the file's clock).
    """

    def __init__(self, reader: FrameReader, start: float | None = None, end: float | None = None) -> None:
        self._reader = reader
        self._first, stop = _clip(reader, start, end)
        self.timestamps = reader.times[self._first : stop].copy()
        self._end = float(reader.times[stop])
        self.metadata = VideoMetadata(
            frames=stop - self._first,
            fps=_rate(reader, self._first, stop),
            duration=self._end - float(self.timestamps[0]),
            width=reader.width,
            height=reader.height,
            rotation=reader.rotation,
        )

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file. Metadata and timestamps stay readable."""
        self._reader.close()

    def frames_at(
        self,
        indices: Iterable[int] | None = None,
        *,
        seconds: Iterable[float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Decode frames in the order asked; duplicates are allowed.

        Args:
            indices: frame numbers counted from the clip's first frame.
            seconds: instead of `indices`: the frame on display at each second, on the clock of `timestamps`.
            size: ``(width, height)`` to resize to, frame by frame with Pillow's bicubic filter; None keeps the video's size.

        Returns:
            uint8 ``[n, height, width, 3]``, RGB.

        Raises:
            MediaError: for a frame or second outside the video, or a damaged frame among those asked for.
        """
        if (indices is None) == (seconds is None):
            raise MediaError(self._reader.name, "frames_at needs either indices or seconds", "Pass exactly one of the two")
        numbers = [int(i) for i in indices] if indices is not None else [self._number_at(t) for t in seconds or ()]
        count = self.metadata.frames
        for number in numbers:
            if not 0 <= number < count:
                raise MediaError(
                    self._reader.name, f"has {count} frames, there is no frame {number}", f"Ask for 0 to {count - 1}"
                )
        width, height = size or (self.metadata.width, self.metadata.height)
        frames = np.empty((len(numbers), height, width, 3), np.uint8)
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number + self._first, []).append(place)
        missing = set(places)
        for number, picture in self._reader.read(sorted(places), size):
            frames[places[number]] = picture
            missing.discard(number)
        if missing:
            raise MediaError(self._reader.name, f"frame {min(missing) - self._first} could not be decoded", "Re-encode the file")
        return frames

    def _number_at(self, second: float) -> int:
        if not self.timestamps[0] - _SAME_INSTANT <= second < self._end:
            raise MediaError(
                self._reader.name,
                f"shows nothing at {second:g} s",
                f"Ask for {self.timestamps[0]:g} s up to, not including, {self._end:g} s",
            )
        return max(int(np.searchsorted(self.timestamps, second + _SAME_INSTANT, side="right")) - 1, 0)


def open_video(source: VideoSource, *, start: float | None = None, end: float | None = None, fps: float = 1.0) -> Video:
    """Open a video and index its frames.

    Args:
        source: path or ``file://`` URL of a video or animation, its bytes, a folder of pictures (natural name order), or a list
            of pictures as `load_image` takes them.
        start: seconds from the first displayed frame; frames shown earlier are left out.
        end: seconds; frames that appear at or after it are left out.
        fps: rate given to a folder or list of pictures; files have their own.

    Raises:
        MediaError: missing, truncated or corrupt file, no video stream, or an empty clip. A local file can never make the reader
            open another file or address.
    """
    from . import stills, video_container

    reader: FrameReader
    if isinstance(source, bytes):
        name = f"<{len(source)} bytes>"
        opener = stills.AnimationReader if _is_animation(source[:16]) else video_container.ContainerReader
        reader = opener(source, name)
    elif isinstance(source, str | Path):
        path = local_path(os.fspath(source))
        if os.path.isdir(path):
            reader = stills.PictureListReader(stills.pictures_of(path), path, fps)
        else:
            opener = stills.AnimationReader if _is_animation(_head(path)) else video_container.ContainerReader
            reader = opener(path, path)
    elif isinstance(source, Sequence) and not isinstance(source, Mapping):
        reader = stills.PictureListReader(list(source), f"<list of {len(source)} pictures>", fps)
    else:
        raise MediaError(
            repr(source), f"a {type(source).__name__} is not a video source", "Give a path, bytes or a list of pictures"
        )
    try:
        return Video(reader, start, end)
    except BaseException:
        reader.close()
        raise


def probe_video(source: VideoSource, *, start: float | None = None, end: float | None = None, fps: float = 1.0) -> VideoMetadata:
    """What a video or clip holds, with the exact number of displayed frames; arguments and errors as `open_video`."""
    with open_video(source, start=start, end=end, fps=fps) as video:
        return video.metadata


def read_frames(
    source: VideoSource,
    indices: Iterable[int],
    *,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float = 1.0,
) -> np.ndarray:
    """Frames of a video or clip: uint8 ``[n, height, width, 3]``; arguments and errors as `open_video` and `Video.frames_at`."""
    with open_video(source, start=start, end=end, fps=fps) as video:
        return video.frames_at(indices, size=size)


def _clip(reader: FrameReader, start: float | None, end: float | None) -> tuple[int, int]:
    times = reader.times[:-1]
    first = 0 if start is None else int(np.searchsorted(times, start - _SAME_INSTANT, side="left"))
    stop = len(times) if end is None else int(np.searchsorted(times, end - _SAME_INSTANT, side="left"))
    if first >= stop:
        length = float(reader.times[-1])
        raise MediaError(
            reader.name, f"no frame appears from {start} s to {end} s", f"It lasts {length:g} s: choose start < end within it"
        )
    return first, stop


def _rate(reader: FrameReader, first: int, stop: int) -> float:
    times = reader.times
    # The nominal rate is exact where times are rounded (Matroska keeps milliseconds), and wrong where the rate varies: believe it
    # to 1 %.
    if stop - first > 1:
        measured = (stop - first - 1) / float(times[stop - 1] - times[first])
        return reader.rate if reader.rate is not None and abs(reader.rate / measured - 1) < 0.01 else measured
    return reader.rate or 1.0 / float(times[stop] - times[first])


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except FileNotFoundError as error:
        mend = "Fetch it first and give the file" if "://" in path else "Check the path and the recipe's root"
        raise MissingMediaError(path, "no such file", mend) from error
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error


def _is_animation(head: bytes) -> bool:
    return head.startswith(_ANIMATION_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
