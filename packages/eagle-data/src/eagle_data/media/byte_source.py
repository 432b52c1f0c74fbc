"""Where the bytes of a video lie: a file, memory or an open file object, read at any offset. (An address: `web_source`.)

Promises that `read_at` may be called from several threads, gives fewer bytes than asked only at the end, and never opens anything
but the one source named. Knows nothing of containers.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import Any, BinaryIO, Protocol

from ..errors import MediaError, MissingMediaError

__all__ = ["ByteSource", "FileObjectSource", "LocalFileSource", "MemorySource", "SourceReader"]


class ByteSource(Protocol):
    """Bytes that can be read at any offset.

    Attributes:
        name: for errors.
        size: bytes.
        mtime_ns: time of the last change, or 0 where there is none; with `size` it tells a stale index.
        path: of a local file, else None.
    """

    name: str

    @property
    def size(self) -> int:
        """See above."""
        ...

    @property
    def mtime_ns(self) -> int:
        """See above."""
        ...

    @property
    def path(self) -> str | None:
        """See above."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end. Raises MediaError when the medium fails."""
        ...

    def close(self) -> None:
        """Release it; calling twice is allowed."""
        ...


class MemorySource:
    """The bytes of a file that is already in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self.size, self.mtime_ns, self.path = name, len(data), 0, None
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to release."""


class LocalFileSource:
    """A file by its path. The descriptor is opened at the first read, so that a stored index costs no I/O until then."""

    def __init__(self, path: str) -> None:
        self.name, self.path = path, path
        self._descriptor: int | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._stat: os.stat_result | None = None

    def _open(self) -> int:
        if self._descriptor is None:
            with self._lock:
                if self._closed:
                    raise MediaError(self.name, "the video was closed", "Read frames inside the with block")
                if self._descriptor is None:
                    try:
                        # A pipe without a writer would block here for ever; files take no notice of the flag.
                        descriptor = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    except FileNotFoundError as error:
                        mend = (
                            "Fetch it first and give the file" if "://" in self.name else "Check the path and the recipe's root"
                        )
                        raise MissingMediaError(self.name, "no such file", mend) from error
                    except (OSError, ValueError) as error:
                        cause = getattr(error, "strerror", None) or error
                        raise MediaError(self.name, f"cannot be read ({cause})", "Check its permissions") from error
                    self._stat = os.fstat(descriptor)
                    if not stat.S_ISREG(self._stat.st_mode):
                        os.close(descriptor)
                        raise MediaError(self.name, "is no file but a folder, a pipe or a device", "Give a file")
                    self._descriptor = descriptor
        return self._descriptor

    @property
    def size(self) -> int:
        """Bytes of the file."""
        self._open()
        assert self._stat is not None
        return self._stat.st_size

    @property
    def mtime_ns(self) -> int:
        """When the file was last changed."""
        self._open()
        assert self._stat is not None
        return self._stat.st_mtime_ns

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        descriptor = self._descriptor if self._descriptor is not None else self._open()
        try:
            data = os.pread(descriptor, length, offset)
            while 0 < len(data) < length:
                more = os.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except (OSError, OverflowError) as error:
            cause = getattr(error, "strerror", None) or error
            raise MediaError(self.name, f"cannot be read at byte {offset} ({cause})", "Check the disk") from error
        return data

    def close(self) -> None:
        """Close the descriptor."""
        with self._lock:
            self._closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


class FileObjectSource:
    """A binary file object that can seek. It stays the caller's: `close` leaves it open."""

    mtime_ns = 0
    path = None

    def __init__(self, file: BinaryIO) -> None:
        self.name = f"<{type(file).__name__} {getattr(file, 'name', '')}>".replace(" >", ">")
        self._file, self._lock = file, threading.Lock()
        try:
            self.size = file.seek(0, io.SEEK_END)
        except (OSError, ValueError) as error:
            raise MediaError(self.name, "cannot seek", "Give a path, bytes or a file object that can seek") from error

    def read_at(self, offset: int, length: int) -> bytes:
        """See `ByteSource`."""
        with self._lock:
            try:
                self._file.seek(offset)
                data = self._file.read(length)
                while 0 < len(data) < length:
                    more = self._file.read(length - len(data))
                    if not more:
                        break
                    data += more
            except (OSError, ValueError) as error:
                raise MediaError(self.name, f"cannot be read at byte {offset} ({error})", "Check the file object") from error
        return data

    def close(self) -> None:
        """The file object is the caller's to close."""


class SourceReader(io.RawIOBase):
    """A `ByteSource` as a file object with its own position, for readers that want one."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from here on."""
        data = self._source.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at
