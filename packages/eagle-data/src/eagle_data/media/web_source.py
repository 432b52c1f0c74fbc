"""A video at an http(s) address, fetched by ranges as they are needed.

Promises a `byte_source.ByteSource` within the caller's leave (`eagle_data.fetch`): no byte without it, none from another host, an
end in bytes for as long as the video is open, and in seconds for each range. Keeps a few blocks; not a cache on disk.
"""

from __future__ import annotations

import threading

from ..errors import MediaError
from ..fetch import Fetch, allowed, fetch_range

__all__ = ["WebSource"]

_BLOCK = 1 << 18
_BLOCKS_KEPT = 64


class WebSource:
    """An address whose server answers range requests; blocks are kept, so that a table is fetched once.

    Raises:
        MediaError: as `fetch.allowed` and `fetch.fetch_range`, also of `read_at`.
    """

    mtime_ns = 0
    path = None

    def __init__(self, url: str, fetch: Fetch | None = None) -> None:
        self.name = url
        self._fetch = allowed(url, fetch)
        self._blocks: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._spent = 0
        self._blocks[0], self.size = self._get(0)

    def _get(self, number: int) -> tuple[bytes, int]:
        body, size = fetch_range(self.name, self._fetch, number * _BLOCK, _BLOCK, spent=self._spent)
        self._spent += len(body)
        return body, size

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            body, size = self._get(number)
            if size != self.size:
                raise MediaError(self.name, "has changed while it was read", "Open it again")
            while len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[number] = body
        return self._blocks[number]

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        stop = min(offset + length, self.size)
        parts = []
        with self._lock:
            for number in range(offset // _BLOCK, -(-stop // _BLOCK) if stop > offset else 0):
                first = number * _BLOCK
                parts.append(self._block(number)[max(offset - first, 0) : stop - first])
        return b"".join(parts)

    def close(self) -> None:
        """Forget the blocks."""
        self._blocks.clear()
