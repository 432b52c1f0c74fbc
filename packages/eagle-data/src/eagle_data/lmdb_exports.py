"""An LMDB store back into a tar archive, a folder of files, or a folder of parquet files, with the annotations that name it.

Promises what `lmdb_convert` promises the other way round: an export killed at any moment goes on where it was, every value is
read back and compared by SHA-256 before the result appears under its name, and no key can lead out of the folder written to.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import MediaError
from .lmdb_convert import Conversion, Progress, checksums_of
from .lmdb_sources import key_of, name_of, open_source, rewrite
from .lmdb_store import LmdbStore
from .tar_members import member_names, open_member

__all__ = ["from_lmdb"]

_SHARD_BYTES = 256 << 20
_BLOCK = 512


def from_lmdb(
    store: str | Path,
    out: str | Path,
    *,
    annotations: str | Path | None = None,
    root: str | Path | None = None,
    progress: Progress | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> Conversion:
    """Write every value of a store to `out`.

    Args:
        store: an LMDB store; where it has a `checksums.sha256`, its values are first held against that.
        out: ends in `.tar`: an archive. Ends in `.parquet`: a folder of files with the columns `key` (the name)
            and `image`, which parquet readers take for one table. Otherwise a folder of files, named as the keys are.
        annotations: JSONL that names the store, relative to `root`; `<out>.jsonl` then names the files. For a folder of files.
        root: of the annotations; their own folder when None.
        progress: called with "copy" or "check", values done, and how many there are.
        shard_bytes: of pictures in one parquet file.

    Raises:
        MediaError: `out` exists, an unreadable store, a key that is no usable name, or a value that does not read back as it was.
    """
    out, opened = Path(out), LmdbStore(store)
    if out.exists():
        raise MediaError(str(out), "exists", "Give another name, or remove it")
    if annotations is not None and out.suffix in (".tar", ".parquet"):
        raise MediaError(str(out), "annotations can only name files of a folder", "Give a folder, or leave annotations out")
    keys = opened.keys()
    sums = checksums_of(store)
    if sums and sums.keys() != set(keys):
        raise MediaError(str(store), "holds other keys than its checksums.sha256", "Convert it again, or remove that file")
    part = out.with_name(out.name + ".part")
    values = _Values(opened, keys, sums)
    write = {".tar": _to_tar, ".parquet": _to_parquet}.get(out.suffix, _to_folder)
    resumed = write(values, part, shard_bytes, progress)
    size = _compare(values, part, out.suffix, progress)
    if annotations is not None:
        _write_annotations(Path(annotations), Path(root or Path(annotations).parent), opened, out)
    os.replace(part, out)
    return Conversion(len(keys), len(keys), 0, size, resumed)


class _Values:
    """The store's values in key order, each held against its checksum; remembers the hashes of what was given out."""

    def __init__(self, store: LmdbStore, keys: list[str], sums: dict[str, str]) -> None:
        self.store, self.keys, self._sums = store, keys, sums

    def get(self, key: str) -> bytes:
        value = self.store.get(key)
        if self._sums and hashlib.sha256(value).hexdigest() != self._sums[key]:
            raise MediaError(f"{self.store.path}[{key}]", "differs from its checksum", "Convert the store again")
        return value


def _to_tar(values: _Values, part: Path, shard_bytes: int, progress: Progress | None) -> int:
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as file:
        done, end = _whole_members(part)
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number, key in enumerate(values.keys[done:], done + 1):
                data = values.get(key)
                info = tarfile.TarInfo(name_of(key))
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                _tell(progress, "copy", number, values)
    return done


def _whole_members(part: Path) -> tuple[int, int]:
    """How many members of an unfinished archive are whole, and where the last of them ends."""
    size, done, end = part.stat().st_size, 0, 0
    with suppress(tarfile.TarError, EOFError), tarfile.open(part, "r:") as archive:
        for member in archive:
            after = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            if after > size:
                break
            done, end = done + 1, after
    return done, end


def _to_folder(values: _Values, part: Path, shard_bytes: int, progress: Progress | None) -> int:
    done = 0
    part.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(values.keys, 1):
        path = part / _safe_name(values.store.path, key)
        data = values.get(key)
        try:
            if path.is_file() and path.read_bytes() == data:
                done += 1
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        except OSError as error:
            raise MediaError(f"{values.store.path}[{key}]", f"cannot be a file ({error.strerror})", "Export to .tar") from error
        _tell(progress, "copy", number, values)
    return done


def _to_parquet(values: _Values, part: Path, shard_bytes: int, progress: Progress | None) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    part.mkdir(parents=True, exist_ok=True)
    # A file gets its name when it is whole, so what is there counts.
    whole = sorted(part.glob("part-*.parquet"))
    done = sum(parquet.read_metadata(file).num_rows for file in whole)
    shard = len(whole)
    rows: list[tuple[str, bytes]] = []
    size = 0
    for number, key in enumerate(values.keys[done:], done + 1):
        data = values.get(key)
        rows.append((_text_name(values.store.path, key), data))
        size += len(data)
        if size >= shard_bytes or number == len(values.keys):
            table = pa.table({"key": [key for key, _ in rows], "image": pa.array([data for _, data in rows], pa.binary())})
            temporary = part / "unfinished"
            parquet.write_table(table, temporary, row_group_size=1024, compression="none")
            os.replace(temporary, part / f"part-{shard:05d}.parquet")
            shard, rows, size = shard + 1, [], 0
        _tell(progress, "copy", number, values)
    return done


def _compare(values: _Values, part: Path, suffix: str, progress: Progress | None) -> int:
    """Hold what was written against the store, by hash; the bytes compared."""
    _check_names(values, part, suffix)
    size = 0
    for number, (key, read) in enumerate(_written(values, part, suffix), 1):
        data = read()
        if hashlib.sha256(data).digest() != hashlib.sha256(values.get(key)).digest():
            raise MediaError(f"{part}: {key}", "does not read back as it was written", f"Check the disk; remove {part}")
        size += len(data)
        _tell(progress, "check", number, values)
    return size


def _check_names(values: _Values, part: Path, suffix: str) -> None:
    """Refuse what an unfinished export of another store left behind, and two keys that became one name."""
    if suffix == ".tar":
        found = set(member_names(str(part)))
    elif suffix == ".parquet":
        found = {entry.key for entry in open_source(part).entries()} if values.keys else set()
    else:
        found = {path.relative_to(part).as_posix() for path in part.rglob("*") if not path.is_dir()}
    wanted = {key_of(name_of(key)) if suffix == ".parquet" else name_of(key) for key in values.keys}
    if found != wanted or len(wanted) != len(values.keys):
        some = ", ".join(sorted(found ^ wanted)[:3]) or "two keys that are one name"
        raise MediaError(str(part), f"does not hold the store's names ({some})", "Remove it and export again")


def _written(values: _Values, part: Path, suffix: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if suffix == ".parquet":
        if values.keys:
            entries = open_source(part, column="image", key_column="key").entries()
            for key, entry in zip(values.keys, entries, strict=True):
                yield key, entry.read
        return
    for key in values.keys:
        if suffix == ".tar":
            yield key, lambda key=key: _member(part, name_of(key))
        else:
            yield key, (part / _safe_name(values.store.path, key)).read_bytes


def _member(archive: Path, name: str) -> bytes:
    with open_member(str(archive), name) as member:
        return member.read()


def _safe_name(store: str, key: str) -> str:
    name = name_of(key)
    parts = name.split("/")
    if name.startswith("/") or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise MediaError(f"{store}[{key}]", "the key is no relative path of a file", "Export to .tar or .parquet")
    return name


def _text_name(store: str, key: str) -> str:
    name = name_of(key)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MediaError(f"{store}[{key}]", "the key's name is no UTF-8 text", "Export to .tar or to a folder") from error
    return name


def _write_annotations(source: Path, root: Path, store: LmdbStore, out: Path) -> None:
    here, keys = os.path.realpath(store.path), set(store.keys())

    def replaced(item: Any) -> Any:
        if not isinstance(item, dict) or os.path.realpath(root / str(item.get("lmdb_file"))) != here:
            return item
        key = str(item.get("lmdb_key"))
        return os.path.relpath(out / name_of(key), root) if key in keys else item

    rewrite(source, out.with_name(out.name + ".jsonl"), replaced)


def _tell(progress: Progress | None, step: str, number: int, values: _Values) -> None:
    if progress is not None and (number % 64 == 0 or number == len(values.keys)):
        progress(step, number, len(values.keys))
