"""How one string names a medium inside another file: ``archive.tar::a/b.png``, ``cells.parquet::image::17``, ``doc.pdf::3``.

Pure text, apart from one look whether a file of exactly that name exists (then it is that file). Reading what a reference names
is `tar_members`, `parquet_cells` and `pdf_pages`; rows count from 0 as in parquet, pages from 1 as printed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from .errors import MediaError

__all__ = ["Reference", "local_path", "parse_reference"]

_KINDS: dict[str, Literal["tar", "parquet", "pdf"]] = {".tar::": "tar", ".parquet::": "parquet", ".pdf::": "pdf"}


@dataclass(frozen=True)
class Reference:
    """A file, or something inside it.

    Attributes:
        kind: what the file is; "file" is a plain file and has no `inner`.
        file: the path on disk.
        inner: the tar member's name, ``column::row`` of a parquet file, or a PDF's page number.
    """

    kind: Literal["file", "tar", "parquet", "pdf"]
    file: str
    inner: str = ""

    @property
    def cell(self) -> tuple[str, int]:
        """Column and row of a parquet reference. Raises MediaError when it has not this form."""
        column, _, row = self.inner.rpartition("::")
        if not column or not row.isascii() or not row.isdigit():
            raise MediaError(f"{self.file}::{self.inner}", "names no cell", "Write file.parquet::column::row, rows from 0")
        return column, int(row)

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
