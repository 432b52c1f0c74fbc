"""How one string names a medium inside another file: ``archive.tar::a/b.png``, ``cells.parquet::image::17``, ``doc.pdf::3``.

Pure text, apart from one look whether a file of exactly that name exists (then it is that file) and what kind of file it is.
Reading what a reference names is `tar_members`, `table_cells` and `pdf_pages`; rows count from 0 as in parquet, pages from 1
as printed.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Literal

from .errors import MediaError

__all__ = ["Reference", "check_regular", "local_path", "parse_reference"]

_KINDS: dict[str, Literal["tar", "cell", "pdf"]] = {
    ".tar::": "tar",
    ".parquet::": "cell",
    ".arrow::": "cell",
    ".pdf::": "pdf",
}
_CELL = re.compile(r"(.+?)::([0-9]+)(?:::([0-9]+))?")


@dataclass(frozen=True)
class Reference:
    """A file, or something inside it.

    Attributes:
        kind: what the file is; "file" is a plain file and has no `inner`.
        file: the path on disk.
        inner: the tar member's name, ``column::row`` or ``column::row::item`` of a parquet or Arrow file, or a PDF's page number.
    """

    kind: Literal["file", "tar", "cell", "pdf"]
    file: str
    inner: str = ""

    @property
    def cell(self) -> tuple[str, int, int | None]:
        """Column, row and the item of a list, or None, of a cell. Raises MediaError when the reference has not this form."""
        parts = _CELL.fullmatch(self.inner)
        if parts is None:
            mend = "Write file.parquet::column::row, rows from 0, and ::item behind it for one of a list"
            raise MediaError(f"{self.file}::{self.inner}", "names no cell", mend)
        return parts[1], int(parts[2]), None if parts[3] is None else int(parts[3])

    @property
    def page(self) -> int:
        """The 1-based page of a PDF reference. Raises MediaError when it is no page number."""
        if not self.inner.isascii() or not self.inner.isdigit() or int(self.inner) < 1:
            raise MediaError(f"{self.file}::{self.inner}", "names no page", "Write file.pdf::3 for the third page")
        return int(self.inner)


def parse_reference(text: str) -> Reference:
    """What `text` (a path, a ``file://`` URL or ``file::inner``) names. Anything without a known inner form is a plain file."""
    text = local_path(text)
    if "::" not in text or os.path.exists(text):
        return Reference("file", text)
    lowered = text.lower()
    found = [(at, mark) for mark in _KINDS if (at := lowered.find(mark)) >= 0]
    if not found:
        return Reference("file", text)
    at, mark = min(found)
    cut = at + len(mark)
    return Reference(_KINDS[mark], text[: cut - 2], text[cut:])


def local_path(text: str) -> str:
    """The path that a ``file://`` URL names; any other text unchanged."""
    if not text.startswith("file://"):
        return text
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(text).path)


def check_regular(file: str) -> None:
    """Raise MediaError where `file` is a pipe, a device, a socket or a folder: to open one may block for ever, or never end.

    What is not there, or cannot be looked at, is left to whoever opens it.
    """
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise MediaError(file, f"is not a file but {kind}", "Give a file")
