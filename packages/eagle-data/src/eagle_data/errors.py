"""The errors that eagle-data raises on purpose, so that a caller can catch one type and print one useful line.

Every message names the file or the sample, says what was wrong and how to mend it. All of them survive pickling, because they
travel out of data-loader workers. Not for programming mistakes of this package itself: those stay ordinary exceptions.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["EagleDataError", "MediaError", "MissingMediaError", "SampleError"]


class EagleDataError(ValueError):
    """Base of every error that eagle-data raises for bad input or bad arguments."""


class MediaError(EagleDataError):
    """An image, video or store that cannot be read, or cannot give what was asked of it.

    Attributes:
        source: the file, URL, or a short description of bytes, as the user would recognise it.
        reason: what was wrong, without a full stop.
        mend: what to do about it, without a full stop.
        kind: the few words under which reports count it.
    """

    kind: ClassVar[str] = "unreadable media"

    def __init__(self, source: str, reason: str, mend: str = "Check the file, or leave it out") -> None:
        self.source = source
        self.reason = reason
        self.mend = mend
        super().__init__(f"{source}: {reason}. {mend}.")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str, str]]:
        return type(self), (self.source, self.reason, self.mend)


class MissingMediaError(MediaError):
    """A file, store or key that is not there."""

    kind: ClassVar[str] = "missing media"


class SampleError(EagleDataError):
    """A sample (one annotation line) that cannot be used.

    Attributes:
        where: ``file:line`` of the annotation.
        reason: what was wrong and the mend, without a full stop.
        kind: the few words under which reports count it.
    """

    def __init__(self, where: str, reason: str, kind: str = "bad record") -> None:
        self.where = where
        self.reason = reason
        self.kind = kind
        super().__init__(f"{where}: {reason}.")

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        return type(self), (self.where, self.reason, self.kind)
