"""A cell of a parquet or Arrow file as encoded bytes: binary, the struct with `bytes` of image datasets, or one of a list.

Promises a typed error for what is not there and never follows a path that a cell holds. Of parquet a row group is the smallest
thing that can be read, so the last one stays in memory per thread; for training from shuffled rows convert to LMDB once
(`lmdb_convert`), or use Arrow files, which are mapped into memory.
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .errors import MediaError, MissingMediaError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData

__all__ = ["byte_columns", "bytes_of_cell", "read_cell"]

_FILES_REMEMBERED = 16
_last = threading.local()


def read_cell(file: str, column: str, row: int, item: int | None = None) -> bytes:
    """The bytes in `column` of row number `row`, rows from 0; of a list the one at `item`, from 0.

    Raises:
        MediaError: no parquet or Arrow file, no such column, row or item, or a cell without bytes (MissingMediaError for a
            missing file or row).
    """
    name = f"{file}::{column}::{row}" + ("" if item is None else f"::{item}")
    try:
        status = os.stat(file)
    except OSError as error:
        raise MissingMediaError(file, "no such file", "Check the path and the recipe's root") from error
    stamp = (os.path.realpath(file), status.st_size, status.st_mtime_ns)
    find = _arrow_cell if file.lower().endswith(".arrow") else _parquet_cell
    return bytes_of_cell(_item(find(stamp, column, row, name), item, name), name)


def _arrow_cell(stamp: tuple[str, int, int], column: str, row: int, name: str) -> Any:
    table = _arrow_table(*stamp)
    _check_column(column, table.column_names, name)
    if row >= table.num_rows:
        raise _no_row(name, table.num_rows)
    return table.column(column)[row]


def _parquet_cell(stamp: tuple[str, int, int], column: str, row: int, name: str) -> Any:
    metadata = _metadata(*stamp)
    _check_column(column, metadata.schema.to_arrow_schema().names, name)
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            return _group(stamp, metadata, group, column)[row - first]
        first += rows
    raise _no_row(name, first)


def _check_column(column: str, columns: list[str], name: str) -> None:
    if column not in columns:
        raise MediaError(name, f"has no column {column!r}", f"Use one of {', '.join(columns)}")


def _no_row(name: str, rows: int) -> MissingMediaError:
    return MissingMediaError(name, f"the file has {rows} rows", f"Use a row from 0 to {rows - 1}")


def byte_columns(file: str) -> tuple[int, list[str]]:
    """Rows of the file, and its columns that may hold encoded bytes. Raises MediaError."""
    import pyarrow as pa

    try:
        status = os.stat(file)
    except OSError as error:
        raise MissingMediaError(file, "no such file", "Check the path and the recipe's root") from error
    metadata = _metadata(os.path.realpath(file), status.st_size, status.st_mtime_ns)

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return metadata.num_rows, [field.name for field in metadata.schema.to_arrow_schema() if holds_bytes(field.type)]


def bytes_of_cell(value: Any, name: str) -> bytes:
    """The encoded bytes in a cell's value: bytes, or a struct whose `bytes` are. Raises MediaError called `name`."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes) and value:
        return value
    kind = "is empty" if value in (None, b"") else f"holds a {type(value).__name__}"
    raise MediaError(name, f"the cell {kind}, not encoded bytes", "Store the picture's bytes in the column, not a path")


def _item(cell: Any, item: int | None, name: str) -> Any:
    """A cell's value, or that of one item of the list that it holds."""
    import pyarrow as pa

    if not isinstance(cell, pa.ListScalar):
        if item is not None:
            raise MediaError(name, "names an item of a cell that holds no list", f"Write {name.rpartition('::')[0]}")
        return cell.as_py()
    if item is None:
        raise MediaError(name, "is a list", f"Name one of its items, {name}::0")
    items = cell.values
    if items is None or item >= len(items):
        raise MissingMediaError(name, f"the list has {len(items or ())} items", "Use an item of the list, from 0")
    return items[item].as_py()


@lru_cache(maxsize=_FILES_REMEMBERED)
def _arrow_table(file: str, size: int, time: int) -> pa.Table:
    """An Arrow stream as datasets' `save_to_disk` writes it, mapped into memory: nothing is read before it is asked for."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(pa.memory_map(file)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise MediaError(file, f"is not a readable Arrow stream ({error})", "Copy it again, or save it anew") from error


@lru_cache(maxsize=_FILES_REMEMBERED)
def _metadata(file: str, size: int, time: int) -> FileMetaData:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MediaError(file, f"is not a readable parquet file ({error})", "Copy it again, or write it anew") from error


def _group(stamp: tuple[str, int, int], metadata: FileMetaData, group: int, column: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    key = (stamp, group, column)
    if getattr(_last, "key", None) != key:
        try:
            with parquet.ParquetFile(stamp[0], metadata=metadata) as file:
                _last.values = file.read_row_group(group, columns=[column], use_threads=False).column(column)
        except (pa.ArrowException, OSError, ValueError) as error:
            _last.key = None
            raise MediaError(
                stamp[0], f"row group {group} cannot be read ({error})", "Copy it again, or write it anew"
            ) from error
        _last.key = key
    return _last.values
