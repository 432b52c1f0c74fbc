"""decord (or its fork decord2) as a decoder, on the files that it reads rightly.

Refused, because measured wrong or hanging: edit lists and other hidden pictures, open groups of pictures, MPEG-TS, AVI with
B-frames, files without stored times. A count that differs from ours is refused too. decord cannot tell damaged pictures,
so none is marked; it holds every picture of a call twice. Not for untrusted files: it can hang in native code.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import MediaError
from ..images import local_path
from .facts import VideoFacts
from .shaping import first_line, shaped

__all__ = ["DecordReader"]

_AT_ONCE = 16


class DecordReader:
    """Implements `video_frames.FrameReader`."""

    def __init__(self, source: Any, name: str, facts: VideoFacts) -> None:
        self.name, self.times, self.rate = name, facts.times, facts.rate
        self.width, self.height, self.rotation = facts.width, facts.height, facts.rotation
        decord = self.load()
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        elif not hasattr(source, "read"):
            source = local_path(str(source))
        try:
            # One thread: decord's own choice is every core in every worker.
            self._reader: Any = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        except Exception as error:  # decord raises its own DECORDError, RuntimeError and more
            raise MediaError(name, f"decord cannot open it ({first_line(error)})", "Use backend='eagle'") from error
        if len(self._reader) != len(facts):
            raise MediaError(
                name, f"decord counts {len(self._reader)} frames and {len(facts)} are displayed", "Use backend='eagle'"
            )

    @staticmethod
    def load() -> Any:
        """The library. Raises ImportError."""
        import decord  # pyright: ignore[reportMissingImports]

        return decord

    @staticmethod
    def refusal(facts: VideoFacts) -> str:
        """Why decord must not be given this file; empty when it may."""
        if facts.container == "mpegts":
            return "it is an MPEG transport stream, on which decord hangs"
        if facts.container == "avi" and facts.reordered:
            return "it is an AVI with B-frames, whose frames decord takes in decoding order"
        if facts.hidden:
            return f"{facts.hidden} pictures are decoded and not displayed (an edit list), and decord shows them"
        if facts.open_gop:
            return "its groups of pictures are open, after which decord gives wrong frames"
        if not facts.timed:
            return "it stores no presentation times"
        return ""

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted frames in order; see `video_frames.FrameReader`."""
        if self._reader is None:
            raise MediaError(self.name, "the video was closed", "Read frames inside the with block")
        for first in range(0, len(wanted), _AT_ONCE):
            numbers = list(wanted[first : first + _AT_ONCE])
            try:
                pictures = self._reader.get_batch(numbers).asnumpy()
            except Exception as error:
                raise MediaError(self.name, f"decord cannot decode it ({first_line(error)})", "Use backend='eagle'") from error
            for number, picture in zip(numbers, pictures, strict=True):
                yield number, shaped(picture, (self.width, self.height), size, self.name)

    def close(self) -> None:
        """Release the file."""
        self._reader = None
