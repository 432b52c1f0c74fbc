"""What a video gives (metadata, the frames of one call) and what a kind of source must offer for `video.Video` to read it.

Values and interfaces only; opens and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from .errors import MediaError

if TYPE_CHECKING:
    from .media.frame_index import FrameIndex
    from .media.picture import Resize
    from .media.reader import Filled

__all__ = ["FillingReader", "FrameReader", "Frames", "VideoMetadata"]


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


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a video, in the order asked. Iterating gives the pictures.

    Attributes:
        pixels: uint8 ``[n, height, width, 3]``, RGB. A frame that no decoder could give is black (and marked).
        seconds: float64 ``[n]``, when each frame appears, from the file's first displayed frame.
        indices: int64 ``[n]``, frame numbers, counted from the clip's first frame.
        corrupt: bool ``[n]``, frames that are damaged, lean on a damaged one, or are missing.
        decoded: pictures that decoders produced for this call.
        source: the video's name, for errors.
    """

    pixels: np.ndarray
    seconds: np.ndarray
    indices: np.ndarray
    corrupt: np.ndarray
    decoded: int
    source: str = "<video>"

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.pixels)

    def intact(self) -> np.ndarray:
        """The pixels, when no frame is damaged. Raises MediaError that counts the damaged ones otherwise."""
        if self.corrupt.any():
            hurt = int(self.corrupt.sum())
            reason = f"frame {self.indices[self.corrupt][0]} is damaged ({hurt} of the {len(self)} frames asked for are)"
            raise MediaError(self.source, reason, "Copy the file again, re-encode it with ffmpeg, or leave these frames out")
        return self.pixels


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


@runtime_checkable
class FillingReader(Protocol):
    """A reader that decodes straight into the caller's array and marks damage; see `media.reader.ContainerReader`."""

    index: FrameIndex

    def fill(self, places: dict[int, list[int]], out: np.ndarray, *, rotate: bool, resize: Resize) -> Filled:
        """Write each frame number's picture to its places of `out`."""
        ...
