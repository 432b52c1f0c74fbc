"""Members of a tar archive read in place, without unpacking: bytes, or a file object that a video reader can seek in.

Promises one pass over the archive's headers per process (remembered by path, size and time) and reading that never leaves the
member: links, sparse members and archives that were cut off are refused. Compressed archives have no random access and are
refused too; `lmdb_convert` reads them in order.
"""

from __future__ import annotations

import io
import os
import tarfile
from functools import lru_cache
from typing import BinaryIO

from .errors import MediaError, MissingMediaError

__all__ = ["MemberSource", "member_names", "open_member", "read_member"]

_ARCHIVES_REMEMBERED = 16
_ERRORS = (tarfile.TarError, OSError, ValueError, EOFError, MemoryError, OverflowError, RecursionError)


def member_names(file: str) -> list[str]:
    """Names of the regular files in the archive, in its order (of equal names the last one counts). Raises MediaError."""
    return list(_members(file))


def read_member(file: str, member: str) -> bytes:
    """The bytes of a member. Raises MediaError (MissingMediaError where archive or member is not there)."""
    with open_member(file, member) as stream:
        return stream.read()


def open_member(file: str, member: str) -> BinaryIO:
    """A member as a binary file object that can seek; close it. Its `name` is ``file::member``. Errors as `read_member`."""
    return io.BufferedReader(_Window(MemberSource(file, member)))  # pyright: ignore[reportReturnType]


class MemberSource:
    """A member as `media.byte_source.ByteSource`: bytes at any offset, from several threads. Errors as `read_member`."""

    path: str | None = None

    def __init__(self, file: str, member: str) -> None:
        self.name = f"{file}::{member}"
        place = _members(file).get(member)
        if place is None:
            raise MissingMediaError(self.name, "no such file in this archive", "Check the member's name with `tar tf`")
        self._start, self.size = place
        if self._start < 0:
            raise MediaError(
                self.name, "is a link or a sparse file, which is not followed", "Store the file itself in the archive"
            )
        try:
            self._file = open(file, "rb", buffering=0)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise MediaError(self.name, f"cannot be read ({error.strerror})", "Check its permissions") from error
        status = os.fstat(self._file.fileno())
        self.mtime_ns = status.st_mtime_ns
        if self._start + self.size > status.st_size:
            self._file.close()
            raise MediaError(self.name, "is truncated: the archive ends before the member does", "Copy the archive again")

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the member's end. Raises MediaError when the disk fails."""
        wanted = max(min(length, self.size - offset), 0)
        try:
            data = os.pread(self._file.fileno(), wanted, self._start + offset)
            while data and len(data) < wanted:
                more = os.pread(self._file.fileno(), wanted - len(data), self._start + offset + len(data))
                if not more:
                    break
                data += more
        except (OSError, OverflowError, ValueError) as error:
            raise MediaError(self.name, f"cannot be read at byte {offset} ({error})", "Check the disk") from error
        return data

    def close(self) -> None:
        """Close the archive; calling twice is allowed."""
        self._file.close()


class _Window(io.RawIOBase):
    """A member seen as a file of its own."""

    def __init__(self, source: MemberSource) -> None:
        self.name = source.name
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError(f"{self.name}: cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._source.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


def _members(file: str) -> dict[str, tuple[int, int]]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise MissingMediaError(file, "no such archive", "Check the path and the recipe's root") from error
    return _scanned(os.path.realpath(file), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=_ARCHIVES_REMEMBERED)
def _scanned(file: str, size: int, time: int) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of every member; offset -1 for what is not a plain file."""
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    members[member.name] = member.offset_data, member.size
                elif not member.isdir():
                    members[member.name] = -1, 0
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # or every header stays in memory twice
    except tarfile.ReadError as error:
        mend = "Unpack a compressed archive once, or convert it with `eagle-data to-lmdb`"
        raise MediaError(file, f"is not a readable tar archive ({error})", mend) from error
    except _ERRORS as error:
        raise MediaError(file, f"is not a readable tar archive ({error})", "Copy the archive again") from error
    return members
