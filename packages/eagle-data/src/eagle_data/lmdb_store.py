"""Encoded images kept in LMDB: read one by key, or write a store.

Promises the public format (ASCII keys, a value is the bytes of an encoded image), one open environment per process and path, and
use from forked and spawned workers. Pickled values are refused and never loaded. Not a general database and not for decoded
pixels.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import MediaError, MissingMediaError

if TYPE_CHECKING:
    import lmdb

__all__ = ["LmdbStore", "LmdbWriter", "read_lmdb", "write_lmdb"]

_BATCH_BYTES = 64 << 20
_MAX_KEY = 511

# LMDB forbids opening one store twice in a process, so this one table must be shared by every reader: real path to process id,
# inode and environment. After a fork the id differs: a child closes its inherited copy (the parent's stays open) and opens its
# own.
_environments: dict[str, tuple[int, int, lmdb.Environment]] = {}
_lock = threading.Lock()
Result = TypeVar("Result")


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


# A fork copies the lock as it stands; a thread of the parent that held it does not exist in the child and would never release it.
os.register_at_fork(after_in_child=_new_lock)


class LmdbStore:
    """A read-only view of one LMDB store. Cheap to make, safe to pickle, fork and share between threads.

    Args:
        path: the store's folder (holding ``data.mdb``) or single file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        return f"LmdbStore({self.path!r})"

    def get(self, key: str) -> bytes:
        """The value under `key`.

        Raises:
            MediaError: when the store or the key is missing, the key is not ASCII, or the value is a pickle.
        """
        name = f"{self.path}[{key}]"
        encoded = _encode_key(name, key)
        value = _guarded(self.path, lambda transaction: bytes(found) if (found := transaction.get(encoded)) is not None else None)
        if value is None:
            raise MissingMediaError(
                name, "no such key in this store", "Check lmdb_key, or list the keys with LmdbStore(path).keys()"
            )
        _refuse_pickle(name, value)
        return value

    __getitem__ = get

    def keys(self) -> list[str]:
        """All keys, in LMDB's byte order."""
        return _guarded(
            self.path, lambda transaction: [bytes(key).decode("ascii") for key in transaction.cursor().iternext(values=False)]
        )

    def close(self) -> None:
        """Close this process's environment of the store, so that its folder can be moved; reading opens it again."""
        _forget(self.path)

    def __len__(self) -> int:
        return _guarded(self.path, lambda transaction: transaction.stat()["entries"])

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        encoded = _encode_key(f"{self.path}[{key}]", key)
        return _guarded(self.path, lambda transaction: transaction.get(encoded) is not None)


def read_lmdb(path: str | Path, key: str) -> bytes:
    """The bytes under `key` of the store at `path`; errors as `LmdbStore.get`."""
    return LmdbStore(path).get(key)


def write_lmdb(path: str | Path, items: Iterable[tuple[str, bytes]]) -> int:
    """Add `items` to the store in folder `path` (made when missing), replacing equal keys.

    Commits every 64 MB, so an interrupted write keeps what was committed and can simply be run again.
    Do not read the same store from other threads meanwhile.

    Returns:
        The number of items written.

    Raises:
        MediaError: for a key that is not 1 to 511 ASCII bytes, a pickled value, or a store that cannot be written.
    """
    written, size = 0, 0
    batch: list[tuple[str, bytes]] = []
    with LmdbWriter(path) as writer:
        for key, value in items:
            writer.check(key, value)
            batch.append((key, value))
            size += len(value)
            if size >= _BATCH_BYTES:
                writer.commit(batch)
                written, batch, size = written + len(batch), [], 0
        writer.commit(batch)
    return written + len(batch)


class LmdbWriter:
    """A store open for writing in folder `path` (made when missing); a context manager, alone in its process with this store.

    Raises:
        MediaError: a store that cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        import lmdb

        self.path = os.fspath(path)
        _forget(self.path)
        try:
            os.makedirs(self.path, exist_ok=True)
            self._environment = lmdb.open(self.path, map_size=1 << 30, subdir=True, readahead=False, meminit=False)
        except (lmdb.Error, OSError) as error:
            raise MediaError(self.path, f"cannot be opened for writing ({error})", "Give a folder that can be written") from error

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._environment.close()

    def check(self, key: str, value: bytes) -> None:
        """Raises MediaError for a key that is not 1 to 511 ASCII bytes or a pickled value."""
        name = f"{self.path}[{key}]"
        _encode_key(name, key)
        _refuse_pickle(name, value)

    def get(self, key: str) -> bytes | None:
        """The committed value under `key`."""
        with self._environment.begin() as transaction:
            return transaction.get(_encode_key(self.path, key))

    def commit(self, batch: list[tuple[str, bytes]]) -> None:
        """Write `batch`, replacing equal keys; on disk, all of it, when this returns. Raises MediaError."""
        import lmdb

        if not batch:
            return
        try:
            _commit(self._environment, [(_encode_key(self.path, key), value) for key, value in batch])
        except (lmdb.Error, OSError) as error:
            raise MediaError(self.path, f"cannot be written ({error})", "Check the space left on the disk") from error


def _commit(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            # The map is address space, not disk: doubling costs nothing, and no guess of the final size is needed.
            environment.set_mapsize(2 * environment.info()["map_size"] + sum(len(value) for _, value in batch))


def _guarded(path: str, read: Callable[[lmdb.Transaction], Result]) -> Result:
    import lmdb

    try:
        with _environment(path).begin() as transaction:
            return read(transaction)
    except lmdb.Error as error:
        raise MediaError(path, f"is not a readable LMDB store ({error})", "Write it again with write_lmdb") from error


def _environment(path: str) -> lmdb.Environment:
    import lmdb

    data = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
    try:
        inode = os.stat(data).st_ino
    except OSError as error:
        mend = "Give the folder that holds data.mdb, or the single .mdb file"
        raise MissingMediaError(path, "no LMDB store here", mend) from error
    key, pid = os.path.realpath(path), os.getpid()
    with _lock:
        known = _environments.get(key)
        if known is not None and known[:2] == (pid, inode):
            return known[2]
        if known is not None:
            _environments.pop(key)[2].close()
        environment = lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, create=False)
        _environments[key] = (pid, inode, environment)
        return environment


def _forget(path: str) -> None:
    with _lock:
        known = _environments.pop(os.path.realpath(path), None)
        if known is not None:
            known[2].close()


def _encode_key(name: str, key: str) -> bytes:
    try:
        encoded = key.encode("ascii")
    except UnicodeEncodeError as error:
        raise MediaError(name, "the key is not ASCII", "Rename the key") from error
    if not 1 <= len(encoded) <= _MAX_KEY:
        raise MediaError(name, f"the key has {len(encoded)} bytes", f"Use 1 to {_MAX_KEY} bytes")
    return encoded


def _refuse_pickle(name: str, value: bytes) -> None:
    # Loading a pickle runs whatever code it holds; upstream does so for one data set (upstream 3.2). No image format begins like
    # this.
    if value[:1] == b"\x80":
        raise MediaError(name, "the value is a pickle, which could run code when loaded", "Store the encoded image bytes instead")
