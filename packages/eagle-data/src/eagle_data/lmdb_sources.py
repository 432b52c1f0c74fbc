"""What can be turned into an LMDB store: tar archives, parquet files, folders, and annotations with the files that they name.

Each source lists `Entry` values in a fixed order, so that an interrupted conversion goes on where it was, and reads a value only
when asked. Reading is all it does: `lmdb_convert` writes, checks and finishes.
"""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

from .errors import EagleDataError, MediaError, MissingMediaError
from .images import image_bytes
from .table_cells import bytes_of_cell

__all__ = ["Annotations", "Entry", "LmdbSource", "key_of", "name_of", "open_source", "rewrite", "text_of"]

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, MemoryError, OverflowError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Entry:
    """One value to be stored: its key and how to get its bytes (raises MediaError)."""

    key: str
    read: Callable[[], bytes]


class LmdbSource(Protocol):
    """Something that lists entries.

    Attributes:
        path: for messages.
        stamp: changes when the source does; an unfinished conversion of another stamp is not gone on with.
        total: the number of entries, or None when only reading everything would tell.
    """

    path: Path
    stamp: str
    total: int | None

    def entries(self, skip: int = 0) -> Iterator[Entry]:
        """Entries in their fixed order from number `skip` on. Raises MediaError where the source itself breaks off."""
        ...


def open_source(path: Path, *, root: Path | None = None, column: str | None = None, key_column: str | None = None) -> LmdbSource:
    """The source at `path`: a tar archive, a parquet file or folder of them, a JSONL file with media under `root`, or a folder.

    Args:
        path: decides by its ending; a folder is one of parquet files when it holds any, else one of plain files.
        root: what relative paths of a JSONL file are joined to; its own folder when None.
        column: parquet column with the bytes; by default the only one that has any.
        key_column: parquet column with the keys; by default `key` where there is one, else file name and row, `t/0`, `t/1`, ….

    Raises:
        MediaError: a missing or unreadable source.
    """
    if not path.exists():
        raise MissingMediaError(str(path), "no such file or folder", "Check the path")
    name = path.name.lower()
    if path.is_dir():
        tables = sorted(path.glob("*.parquet"))
        return _Parquet(path, tables, column, key_column) if tables else _Folder(path)
    if name.endswith(_TAR_ENDINGS):
        return _Tar(path)
    if name.endswith(".parquet"):
        return _Parquet(path, [path], column, key_column)
    if name.endswith((".jsonl", ".json")):
        return Annotations(path, root or path.parent)
    raise MediaError(str(path), "is no known kind of source", "Give a .tar, .parquet or .jsonl file, or a folder")


def key_of(name: str) -> str:
    """The ASCII key of any name: printable ASCII stays, `%` and everything else is written as in addresses (`%C3%BC`)."""
    return quote(name, safe=_PRINTABLE, errors="surrogateescape")


def name_of(key: str) -> str:
    """The name whose key is `key`."""
    return unquote(key, errors="surrogateescape") if key_of(unquote(key, errors="surrogateescape")) == key else key


class _Tar:
    """Regular members by name; links are entries that fail, folders are none."""

    total: int | None = None

    def __init__(self, path: Path) -> None:
        self.path, self.stamp = path, _stamp(path)

    def entries(self, skip: int = 0) -> Iterator[Entry]:
        number = 0
        try:
            with tarfile.open(self.path, "r|*") as archive:
                for member in archive:
                    if member.isdir():
                        continue
                    number += 1
                    if number > skip:
                        yield Entry(key_of(member.name), lambda member=member: self._read(archive, member))
        except _TAR_ERRORS as error:
            raise MediaError(str(self.path), f"cannot be read on ({error})", "Copy the archive again") from error

    def _read(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        name = f"{self.path}::{member.name}"
        if not member.isreg():
            raise MediaError(name, "is a link or a device, which is not followed", "Store the file itself in the archive")
        opened = archive.extractfile(member)
        assert opened is not None, "a regular member has content"
        try:
            data = opened.read()
        except _TAR_ERRORS as error:
            raise MediaError(name, f"cannot be read ({error})", "Copy the archive again") from error
        if len(data) != member.size:
            raise MediaError(name, "is truncated: the archive ends before the member does", "Copy the archive again")
        return data


class _Parquet:
    """Rows of one column, file by file; a row group at a time is in memory."""

    def __init__(self, path: Path, tables: list[Path], column: str | None, key_column: str | None) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.path, self.stamp = path, json.dumps([*(_stamp(table) for table in tables), column, key_column])
        self._tables = tables
        rows = 0
        for table in tables:
            try:
                metadata = parquet.read_metadata(table)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise MediaError(str(table), f"is not a readable parquet file ({error})", "Copy it again") from error
            schema = metadata.schema.to_arrow_schema()
            column = column or _column_with_bytes(table, schema)
            key_column = key_column or ("key" if "key" in schema.names else None)
            for wanted in (column, key_column):
                if wanted is not None and wanted not in schema.names:
                    raise MediaError(str(table), f"has no column {wanted!r}", f"Use one of {', '.join(schema.names)}")
            rows += metadata.num_rows
        self.total: int | None = rows
        self._column, self._key_column = column or "", key_column

    def entries(self, skip: int = 0) -> Iterator[Entry]:
        import pyarrow as pa
        from pyarrow import parquet

        columns = [self._column] + ([self._key_column] if self._key_column else [])
        seen = 0
        for table in self._tables:
            try:
                with parquet.ParquetFile(table) as file:
                    row = 0
                    for group in range(file.num_row_groups):
                        rows = file.metadata.row_group(group).num_rows
                        if seen + rows > skip:
                            values = file.read_row_group(group, columns=columns, use_threads=False)
                            for i in range(max(skip - seen, 0), rows):
                                yield self._entry(table, row + i, values, i)
                        seen, row = seen + rows, row + rows
            except (pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, EagleDataError):
                    raise
                raise MediaError(str(table), f"cannot be read on ({error})", "Copy it again") from error

    def _entry(self, table: Path, row: int, values: Any, i: int) -> Entry:
        name = f"{table}::{self._column}::{row}"
        key = f"{table.stem}/{row}" if self._key_column is None else str(values[self._key_column][i].as_py())
        return Entry(key_of(key), lambda: bytes_of_cell(values[self._column][i].as_py(), name))


class _Folder:
    """Every regular file under a folder, by its path below it; links are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = []
        for folder, folders, files in os.walk(path):
            folders.sort()
            found += [Path(folder, name) for name in sorted(files)]
        self._files = [file for file in found if file.is_file() and not file.is_symlink()]
        self.stamp = json.dumps([_stamp(file) for file in self._files])
        self.total: int | None = len(self._files)

    def entries(self, skip: int = 0) -> Iterator[Entry]:
        for file in self._files[skip:]:
            yield Entry(key_of(file.relative_to(self.path).as_posix()), lambda file=file: image_bytes(file))


class Annotations:
    """The pictures that a JSONL file names, each once, in the order of their first mention.

    Keys are the paths as written; pictures already in a store, in an archive or a table are copied under the text of their
    reference. Lines that are no JSON object and pictures that cannot be read are left as they are.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self.root = path, root
        found: dict[str, Any] = {}
        for record in _records(path):
            for item in pictures_in(record):
                found.setdefault(key_of(text_of(item)), item)
        self._found = found
        self.stamp = json.dumps([_stamp(path), os.path.abspath(root)])
        self.total: int | None = len(found)

    def entries(self, skip: int = 0) -> Iterator[Entry]:
        for key, item in list(self._found.items())[skip:]:
            yield Entry(key, lambda item=item: image_bytes(self._located(item)))

    def _located(self, item: Any) -> Any:
        if isinstance(item, dict) and "lmdb_file" in item:
            return {"lmdb_file": str(self.root / item["lmdb_file"]), "lmdb_key": str(item.get("lmdb_key"))}
        text = text_of(item)
        return text if text.startswith(("data:", "file:", "http:", "https:")) else str(self.root / text)


def pictures_in(record: Any) -> list[Any]:
    """The image references of one annotation, as written: `image`, and `image_list` of `data` entries."""
    items = [item for holder, key in _holders(record) for item in _as_list(holder[key])]
    return [item for item in items if _is_reference(item)]


def rewrite(source: Path, out: Path, replace: Callable[[Any], Any]) -> None:
    """Copy a JSONL file with every image reference replaced; lines without one stay as they are. `out` appears whole."""
    part = out.with_name(out.name + ".part")
    with (
        source.open(encoding="utf-8-sig", errors="surrogateescape") as lines,
        part.open("w", encoding="utf-8", errors="surrogateescape") as written,
    ):
        for line in lines:
            record = _decoded(line)
            if pictures_in(record):
                for holder, key in _holders(record):
                    items = [replace(item) if _is_reference(item) else item for item in _as_list(holder[key])]
                    holder[key] = items if isinstance(holder[key], list) else items[0]
                line = json.dumps(record, ensure_ascii=False) + "\n"
            written.write(line)
    os.replace(part, out)


def _records(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            yield _decoded(line)


def _decoded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _holders(record: Any) -> list[tuple[dict[str, Any], str]]:
    """The objects of a record and the keys in them under which image references stand."""
    if not isinstance(record, dict):
        return []
    found = [(record, "image")] if record.get("image") else []
    for entry in record["data"] if isinstance(record.get("data"), list) else []:
        if isinstance(entry, dict) and entry.get("type") == "image" and entry.get("image_list"):
            found.append((entry, "image_list"))
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text_of(item: Any) -> str:
    """The text under which a reference is stored: the path, or ``store[key]``."""
    if isinstance(item, dict) and "lmdb_file" in item:
        return f"{item['lmdb_file']}[{item.get('lmdb_key')}]"
    return str(item.get("image", item.get("path"))) if isinstance(item, dict) else item


def _is_reference(item: Any) -> bool:
    if isinstance(item, dict):
        return isinstance(item.get("lmdb_file", item.get("image", item.get("path"))), str)
    return isinstance(item, str) and bool(item)


def _column_with_bytes(table: Path, schema: Any) -> str:
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if len(found) != 1:
        raise MediaError(str(table), f"has {len(found)} columns of bytes", f"Name one of {', '.join(schema.names)} as the column")
    return found[0]


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"
