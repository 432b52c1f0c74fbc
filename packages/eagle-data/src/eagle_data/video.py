"""Exact frames of a video: what is in it, and the frames asked for, by number or by second.

Promises that frame i is the i-th displayed frame (B-frames, variable rate, edit lists and non-zero starts included), upright, and
that a call returns exactly the frames asked for, the damaged ones among them marked, or raises a MediaError naming the file.
Choosing frames is `eagle_data.policies`; finding the reader of a source is `video_sources`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import MediaError
from .fetch import Fetch
from .video_frames import FillingReader, FrameReader, Frames, VideoMetadata
from .video_sources import VideoSource, open_reader

if TYPE_CHECKING:
    from .media.frame_index import FrameIndex
    from .media.picture import Resize

__all__ = ["Frames", "Video", "VideoMetadata", "VideoSource", "open_video", "probe_video", "read_frames"]

# The same instant reached by two routes (index / rate, pts * time base) differs by less; two frames never lie this close.
_SAME_INSTANT = 1e-6


class Video:
    """An open video, or the clip ``start <= t < end`` of it. Use it as a context manager; not shared between threads.

    Attributes:
        metadata: of the clip when there is one, else of the file.
        timestamps: float64 ``[metadata.frames]``, seconds since the file's first displayed frame (a clip keeps the file's clock).
        index: of the whole file, to be stored and given to `open_video`; None for pictures and for other backends.
    """

    def __init__(self, reader: FrameReader, start: float | None = None, end: float | None = None) -> None:
        self._reader = reader
        self.index = reader.index if isinstance(reader, FillingReader) else None
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
        rotate: bool = True,
        resize: Resize = "pillow",
    ) -> Frames:
        """Decode frames in the order asked; duplicates are allowed.

        Args:
            indices: frame numbers counted from the clip's first frame.
            seconds: instead of `indices`: the frame on display at each second, on the clock of `timestamps`.
            size: ``(width, height)`` to scale to, frame by frame as they are decoded; None keeps the video's size.
            rotate: False leaves pictures as they are stored, without the file's display matrix.
            resize: the filter for `size`. "pillow" gives the pixels of the released processor (RGB first, then Pillow's bicubic);
                "swscale" scales the stored planes and converts once, which is faster and differs a little.

        Raises:
            MediaError: for a frame or second outside the video, or a file that can no longer be read. Damage is marked instead.
        """
        if (indices is None) == (seconds is None):
            raise MediaError(self._reader.name, "frames_at needs either indices or seconds", "Pass exactly one of the two")
        if resize not in ("pillow", "swscale"):
            raise MediaError(self._reader.name, f"there is no resize={resize!r}", "Pass 'pillow' or 'swscale'")
        numbers = [int(i) for i in indices] if indices is not None else [self._number_at(t) for t in seconds or ()]
        count = self.metadata.frames
        for number in numbers:
            if not 0 <= number < count:
                raise MediaError(
                    self._reader.name, f"has {count} frames, there is no frame {number}", f"Ask for 0 to {count - 1}"
                )
        width, height = size or (self.metadata.width, self.metadata.height)
        if size is None and not rotate and self.metadata.rotation in (90, 270):
            width, height = height, width
        if width < 1 or height < 1:
            raise MediaError(self._reader.name, f"size={size}", "Give a width and a height of at least 1")
        pixels = np.empty((len(numbers), height, width, 3), np.uint8)
        corrupt = np.zeros(len(numbers), bool)
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number + self._first, []).append(place)
        if isinstance(self._reader, FillingReader):
            filled = self._reader.fill(places, pixels, rotate=rotate, resize=resize)
            for number in filled.damaged:
                corrupt[places[number]] = True
            decoded = filled.decoded
        else:
            decoded = self._read(places, pixels, size, rotate)
        indices_of = np.array(numbers, np.int64)
        return Frames(pixels, self.timestamps[indices_of], indices_of, corrupt, decoded, self._reader.name)

    def segments(self, n: int, *, size: tuple[int, int] | None = None, rotate: bool = True, resize: Resize = "pillow") -> Frames:
        """One frame from each of `n` equal stretches of time: the one that is cheapest to decode, with its true time.

        Lossy in time and on purpose so: a stretch that shows a keyframe gives the keyframe. For pictures and other backends the
        first frame of each stretch. Arguments, result and errors as `frames_at`.
        """
        if n < 1:
            raise MediaError(self._reader.name, f"{n} segments", "Ask for at least one")
        first, count = self._first, self.metadata.frames
        if self.index is not None:
            from .media.decode_plan import cheapest_of_segments

            chosen = cheapest_of_segments(self.index, first, first + count, n) - first
        else:
            edges = self.timestamps[0] + (self._end - self.timestamps[0]) * np.arange(n) / n
            chosen = np.minimum(np.searchsorted(self.timestamps, edges - _SAME_INSTANT, side="left"), count - 1)
        return self.frames_at(chosen.tolist(), size=size, rotate=rotate, resize=resize)

    def _read(self, places: dict[int, list[int]], pixels: np.ndarray, size: tuple[int, int] | None, rotate: bool) -> int:
        """Frames of a reader that only yields pictures; returns how many it gave."""
        if not rotate and self.metadata.rotation:
            raise MediaError(self._reader.name, "this backend always turns pictures upright", "Use backend='eagle'")
        missing = set(places)
        for number, picture in self._reader.read(sorted(places), size):
            pixels[places[number]] = picture
            missing.discard(number)
        if missing:
            raise MediaError(self._reader.name, f"frame {min(missing) - self._first} could not be decoded", "Re-encode the file")
        return len(places)

    def _number_at(self, second: float) -> int:
        if not self.timestamps[0] - _SAME_INSTANT <= second < self._end:
            raise MediaError(
                self._reader.name,
                f"shows nothing at {second:g} s",
                f"Ask for {self.timestamps[0]:g} s up to, not including, {self._end:g} s",
            )
        return max(int(np.searchsorted(self.timestamps, second + _SAME_INSTANT, side="right")) - 1, 0)


def open_video(
    source: VideoSource,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float = 1.0,
    index: FrameIndex | str | Path | None = None,
    backend: str = "eagle",
    threads: int = 2,
    truncated: bool = False,
    budget: float | None = None,
    fetch: Fetch | None = None,
) -> Video:
    """Open a video and index its frames.

    Args:
        source: path, ``file://`` or ``http(s)://`` URL of a video, animation or PDF, its bytes, a binary file object that can
            seek, ``archive.tar::member``, ``cells.parquet::column::row``, a folder or tar archive of pictures (natural name
            order), or a list of pictures as `load_image` takes them.
        start: seconds from the first displayed frame; frames shown earlier are left out.
        end: seconds; frames that appear at or after it are left out.
        fps: rate given to a folder or list of pictures, and to the pages of a PDF; other files have their own.
        index: of an earlier `Video.index`, or the file that its `save` wrote: opening then reads nothing of the video (of an
            address: its first block). It is refused at the first frame when size or modification time of the file have changed.
        backend: "eagle", or "decord" or "torchcodec" where they are installed.
        threads: groups of pictures decoded at the same time, each in one thread.
        truncated: accept a file that was cut off, and give the frames that lie in it whole.
        budget: seconds that opening, and each later call, may take; checked between packets.
        fetch: leave to fetch http(s) addresses (also those of pictures in a list), and its bounds; without it they are refused,
            unless ``EAGLE_DATA_FETCH`` is 1. A video is fetched by ranges. Other backends fetch nothing.

    Raises:
        MediaError: missing, truncated or corrupt file, no video stream, or an empty clip. A local file can never make the reader
            open another file or address.
    """
    reader = open_reader(
        source, fps=fps, index=index, backend=backend, threads=threads, truncated=truncated, budget=budget, fetch=fetch
    )
    try:
        return Video(reader, start, end)
    except BaseException:
        reader.close()
        raise


def probe_video(
    source: VideoSource,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float = 1.0,
    fetch: Fetch | None = None,
) -> VideoMetadata:
    """What a video or clip holds, with the exact number of displayed frames; arguments and errors as `open_video`."""
    with open_video(source, start=start, end=end, fps=fps, fetch=fetch) as video:
        return video.metadata


def read_frames(
    source: VideoSource,
    indices: Iterable[int],
    *,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float = 1.0,
    threads: int = 2,
    fetch: Fetch | None = None,
) -> np.ndarray:
    """Pixels of frames of a video or clip: uint8 ``[n, height, width, 3]``; arguments and errors as `open_video` and
    `Video.frames_at`, and a MediaError when a frame among them is damaged."""
    with open_video(source, start=start, end=end, fps=fps, threads=threads, fetch=fetch) as video:
        return video.frames_at(indices, size=size).intact()


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
