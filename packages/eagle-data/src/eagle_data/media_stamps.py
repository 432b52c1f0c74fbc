"""How media files are known without reading them: by size and time of the file, store, archive or folder of pictures.

A stamp changes when the medium does. What lies behind an address is not looked at: its stamp says only under which leave it was
tried. Remembers the last few files, so one object is for one pass over a dataset.
"""

from __future__ import annotations

import os
from functools import lru_cache

from eagle_data.fetch import Fetch, is_address
from eagle_data.references import parse_reference

_REMEMBERED = 4096


class MediaStamps:
    """Stamps of media, as annotations name them; `fetch` is the leave under which addresses are tried."""

    def __init__(self, fetch: Fetch | None) -> None:
        self._leave = f"fetch {fetch if fetch is not None else os.environ.get('EAGLE_DATA_FETCH') == '1'}"
        self._of_file = lru_cache(maxsize=_REMEMBERED)(_stamp)

    def of(self, path: str) -> str:
        """The stamp of what `path` names."""
        return self._leave if is_address(path) else self._of_file(parse_reference(path).file)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
        if not os.path.isdir(path):
            return f"{status.st_size} {status.st_mtime_ns}"
        store = os.path.join(path, "data.mdb")
        if os.path.exists(store):
            status = os.stat(store)
            return f"{status.st_size} {status.st_mtime_ns}"
        with os.scandir(path) as entries:
            return str(sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries))
    except (OSError, ValueError):
        return "missing"
