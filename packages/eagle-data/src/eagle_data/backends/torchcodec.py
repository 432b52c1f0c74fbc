"""torchcodec as a decoder, in its exact mode, on the files that it reads rightly. Needs torch and FFmpeg's shared libraries.

Refused, because measured wrong: MPEG-TS, AVI with B-frames, and edit lists, whose hidden pictures it counts. A count of frames
that differs from ours is refused too. It cannot tell damaged pictures, so none is marked. Approximate mode is not offered: it is
wrong wherever the rate varies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import MediaError
from ..images import local_path
from .facts import VideoFacts
from .shaping import first_line, shaped

__all__ = ["TorchcodecReader"]

_AT_ONCE = 16


class TorchcodecReader:
    """Implements `video_frames.FrameReader`."""

    def __init__(self, source: Any, name: str, facts: VideoFacts) -> None:
        self.name, self.times, self.rate = name, facts.times, facts.rate
        self.width, self.height, self.rotation = facts.width, facts.height, facts.rotation
        if not isinstance(source, bytes) and not hasattr(source, "read"):
            source = local_path(str(source))
        try:
            self._decoder: Any = self.load()(source, dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=1)
            count = len(self._decoder)
        except (RuntimeError, ValueError, OSError, TypeError) as error:
            raise MediaError(name, f"torchcodec cannot open it ({first_line(error)})", "Use backend='eagle'") from error
        if count != len(facts):
            raise MediaError(name, f"torchcodec counts {count} frames and {len(facts)} are displayed", "Use backend='eagle'")

    @staticmethod
    def load() -> Any:
        """The library's decoder. Raises ImportError, also where its own libraries are missing."""
        try:
            from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
        except (RuntimeError, OSError) as error:  # FFmpeg's shared libraries, or another torch than it was built for
            raise ImportError(first_line(error)) from error
        return VideoDecoder

    @staticmethod
    def refusal(facts: VideoFacts) -> str:
        """Why torchcodec must not be given this file; empty when it may."""
        if facts.container == "mpegts":
            return "it is an MPEG transport stream, in which torchcodec seeks to wrong frames"
        if facts.container == "avi" and facts.reordered:
            return "it is an AVI with B-frames, which it cannot index"
        if facts.hidden:
            return f"{facts.hidden} pictures are decoded and not displayed, and torchcodec counts them"
        if not facts.timed:
            return "it stores no presentation times"
        return ""

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted frames in order; see `video_frames.FrameReader`."""
        if self._decoder is None:
            raise MediaError(self.name, "the video was closed", "Read frames inside the with block")
        for first in range(0, len(wanted), _AT_ONCE):
            numbers = list(wanted[first : first + _AT_ONCE])
            try:
                pictures = self._decoder.get_frames_at(numbers).data.numpy()
            except (RuntimeError, ValueError, IndexError) as error:
                raise MediaError(
                    self.name, f"torchcodec cannot decode it ({first_line(error)})", "Use backend='eagle'"
                ) from error
            for number, picture in zip(numbers, pictures, strict=True):
                yield number, shaped(picture, (self.width, self.height), size, self.name)

    def close(self) -> None:
        """Release the file."""
        self._decoder = None
