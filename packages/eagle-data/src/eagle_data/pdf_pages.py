"""Pages of a PDF as pictures, with pypdfium2 when it is installed (extra `pdf`): one page by number, or all as a video's frames.

Promises RGB on white, a limit on the pixels of a page checked before drawing, and a typed error for damaged, empty or locked
files. Forms and scripts are not run. Not for text: pages are pictures only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .errors import MediaError, MissingMediaError

__all__ = ["PdfReader", "is_pdf", "page_picture", "page_size"]

DPI = 144
"""Dots per inch of a drawn page: 1191 x 1684 for A4, above what 12 tiles of 448 show of it."""

_MAX_PIXELS = 178_956_970
# PDFium itself is not safe to call from two threads at once.
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def is_pdf(head: bytes) -> bool:
    """Whether a file that begins with `head` is a PDF."""
    return head.startswith(b"%PDF-")


def page_picture(source: str | bytes, name: str, page: int, *, dpi: float = DPI, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """Page number `page` (from 1) drawn at `dpi`. Raises MediaError."""
    with _lock, _Document(source, name) as document:
        return document.draw(page - 1, dpi, max_pixels)


def page_size(source: str | bytes, name: str, page: int, *, dpi: float = DPI) -> tuple[int, int]:
    """Width and height in pixels that `page_picture` gives. Raises MediaError."""
    with _lock, _Document(source, name) as document:
        return document.size(page - 1, dpi)


class PdfReader:
    """The pages of a PDF as frames at a fixed rate. Implements `video_frames.FrameReader`.

    The video is as large as the first page; a page of another size fills as much of it as fits, on white.
    """

    rotation = 0

    def __init__(self, source: str | bytes, name: str, fps: float, *, dpi: float = DPI) -> None:
        if not fps > 0:
            raise MediaError(name, f"fps={fps} is not a rate", "Give a positive fps")
        self.name = name
        self.rate: float | None = float(fps)
        self._source, self._dpi = source, dpi
        with _lock, _Document(source, name) as document:
            count = document.pages
            self.width, self.height = document.size(0, dpi)
        self.times = np.arange(count + 1) / fps

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted pages in order; see `video_frames.FrameReader`."""
        for number in wanted:
            page = page_picture(self._source, self.name, number + 1, dpi=self._dpi)
            if page.size != (self.width, self.height):
                page = _fitted(page, (self.width, self.height))
            yield number, np.asarray(page if size is None else page.resize(size, Image.Resampling.BICUBIC))

    def close(self) -> None:
        """Nothing is held open between pages."""


class _Document:
    """An open PDF; used under `_lock`."""

    def __init__(self, source: str | bytes, name: str) -> None:
        try:
            import pypdfium2  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError as error:
            raise MediaError(name, "is a PDF, and pypdfium2 is not installed", "Install eagle-data[pdf]") from error
        self._name = name
        if isinstance(source, str) and not os.path.isfile(source):
            raise MissingMediaError(name, "no such file", "Check the path and the recipe's root")
        try:
            self._document = pypdfium2.PdfDocument(source)
        except (pypdfium2.PdfiumError, OSError, ValueError) as error:
            raise MediaError(name, f"is not a readable PDF ({error})", "Check the file; remove its password") from error
        self.pages = len(self._document)
        if self.pages == 0:
            self._document.close()
            raise MediaError(name, "has no pages", "Check the file, or leave it out")

    def __enter__(self) -> _Document:
        return self

    def __exit__(self, *exc: object) -> None:
        self._document.close()

    def size(self, page: int, dpi: float) -> tuple[int, int]:
        opened = self._page(page)
        try:
            width, height = opened.get_size()
        finally:
            opened.close()
        return max(int(np.ceil(width * dpi / 72)), 1), max(int(np.ceil(height * dpi / 72)), 1)

    def draw(self, page: int, dpi: float, max_pixels: int) -> Image.Image:
        width, height = self.size(page, dpi)
        if width * height > max_pixels:
            raise MediaError(f"{self._name}::{page + 1}", f"would be {width} x {height} pixels", "Ask for a lower dpi")
        opened = self._page(page)
        try:
            return opened.render(scale=dpi / 72).to_pil().convert("RGB")
        except (RuntimeError, ValueError, MemoryError) as error:
            raise MediaError(f"{self._name}::{page + 1}", f"the page cannot be drawn ({error})", "Check the file") from error
        finally:
            opened.close()

    def _page(self, page: int) -> Any:
        if not 0 <= page < self.pages:
            raise MissingMediaError(f"{self._name}::{page + 1}", f"the PDF has {self.pages} pages", f"Ask for 1 to {self.pages}")
        try:
            return self._document[page]
        except (RuntimeError, ValueError) as error:
            raise MediaError(f"{self._name}::{page + 1}", f"the page cannot be read ({error})", "Check the file") from error


def _fitted(page: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = min(size[0] / page.width, size[1] / page.height)
    small = page.resize((max(round(page.width * scale), 1), max(round(page.height * scale), 1)), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", size, (255, 255, 255))
    sheet.paste(small, ((size[0] - small.width) // 2, (size[1] - small.height) // 2))
    return sheet
