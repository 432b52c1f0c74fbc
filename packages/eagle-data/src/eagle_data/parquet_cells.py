"""One cell of a parquet file as encoded bytes: a binary column, or the struct with `bytes` that image datasets use.

Promises a typed error for what is not there and never follows a path that a cell holds. A row group is the smallest thing that
can be read, so the last one stays in memory per thread; for training from shuffled rows convert to LMDB once (`lmdb_convert`).
"""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .errors import MediaError, MissingMediaError

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

__all__ = ["byte_columns", "bytes_of_cell", "read_cell"]

_FILES_REMEMBERED = 16
_last = threading.local()


def read_cell(file: str, column: str, row: int) -> bytes:
    """The bytes in `column` of row number `row`, rows from 0.

    Raises:
        MediaError: no parquet file, no such column or row, or a cell without bytes (MissingMediaError for a missing file or row).
    """
    name = f"{file}::{column}::{row}"
    try:
        status = os.stat(file)
    except OSError as error:
        raise MissingMediaError(file, "no such file", "Check the path and the recipe's root") from error
    stamp = (os.path.realpath(file), status.st_size, status.st_mtime_ns)
    metadata = _metadata(*stamp)
    columns = metadata.schema.to_arrow_schema().names
    if column not in columns:
        raise MediaError(name, f"has no column {column!r}", f"Use one of {', '.join(columns)}")
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if row < first + rows:
            return bytes_of_cell(_group(stamp, metadata, group, column)[row - first].as_py(), name)
        first += rows
    raise MissingMediaError(name, f"the file has {first} rows", f"Use a row from 0 to {first - 1}")


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
