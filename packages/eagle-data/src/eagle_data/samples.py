"""What a training sample is: a conversation and the media it refers to, before anything is decoded.

These are the frozen values handed from the annotation reader to planning. The dataset's `root` is already joined to their paths,
which are relative to the working directory where it is; preparation makes it absolute. Media numbers are 1-based, as in
`<image-1>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "observation"]


@dataclass(frozen=True)
class Message:
    """One turn; `text` may hold `<image-k>`, `<video-k>` and `<document-k>` placeholders except in assistant turns.

    An assistant turn that is not `learned` is context only; of other roles nothing is learned in any case.
    """

    role: Role
    text: str
    learned: bool = True


@dataclass(frozen=True)
class ImageRef:
    """An image file (`path`) or one value of an LMDB store (`path` of the store and `key`)."""

    path: str
    key: str | None = None

    @property
    def source(self) -> str | dict[str, str]:
        """What `eagle_data.images.load_image` takes."""
        return self.path if self.key is None else {"lmdb_file": self.path, "lmdb_key": self.key}

    def __str__(self) -> str:
        return self.path if self.key is None else f"{self.path}[{self.key}]"


@dataclass(frozen=True)
class VideoRef:
    """A video file, whole or the clip `start <= t < end` in seconds."""

    path: str
    start: float | None = None
    end: float | None = None

    def __str__(self) -> str:
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}[{self.start or 0:g}s..{'' if self.end is None else f'{self.end:g}s'}]"


@dataclass(frozen=True)
class DocumentRef:
    """Pages of one PDF, in the order in which they are shown: `pages` are numbers from 1.

    No pages stand for all of them; preparation puts their numbers in before it plans.
    """

    path: str
    pages: tuple[int, ...]

    def page(self, i: int) -> ImageRef:
        """The picture of entry `i` (from 0) of `pages`."""
        return ImageRef(f"{self.path}::{self.pages[i]}")


@dataclass(frozen=True)
class Sample:
    """A conversation with its media; `where` is `file:line` of the annotation, for every later message about it."""

    dataset: str
    where: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()
    documents: tuple[DocumentRef, ...] = ()
