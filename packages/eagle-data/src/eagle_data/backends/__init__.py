"""Other decoders behind the same `Video`: `open(name, source, label)` gives a `video_frames.FrameReader` on decord or torchcodec.

Each is used only when asked for by name. Frame numbers and times are always ours: this package indexes the file, and what the
other library is known to get wrong, or counts otherwise than we do, is refused with a MediaError and never returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MediaError
from .facts import facts_of

if TYPE_CHECKING:
    from ..video_frames import FrameReader

__all__ = ["NAMES", "open"]

NAMES = ("decord", "torchcodec")


def open(name: str, source: Any, label: str) -> FrameReader:
    """A reader of `source` (path, bytes or seekable binary file) that decodes with the library `name`.

    Raises:
        MediaError: no such backend, an unreadable file, or one that this library is known to read wrongly; says what to use.
        ImportError: the library is not installed.
    """
    if name == "decord":
        from .decord import DecordReader as Reader
    elif name == "torchcodec":
        from .torchcodec import TorchcodecReader as Reader
    else:
        raise MediaError(label, f"there is no backend {name!r}", f"Use eagle, {' or '.join(NAMES)}")
    Reader.load()  # before the file is looked at: without the library nothing else matters
    facts = facts_of(source, label)
    reason = Reader.refusal(facts)
    if reason:
        raise MediaError(label, f"{name} is known to read this wrongly: {reason}", "Use backend='eagle'")
    return Reader(source, label, facts)
