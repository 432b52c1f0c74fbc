"""Gathers what `index.parquet` and `groups.parquet` of a context length will hold, while its shards are written.

Promises little memory for each sample: facts lie together as columns until a row group of the index is full, and places as
numbers. Files are written under the names given; whoever gives them moves them into place. The layout is described in `prepared`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eagle_data.prepared_rows import facts_schema, integers, strings

if TYPE_CHECKING:
    import pyarrow as pa

_INDEX_ROWS = 1 << 18
"""Rows of a row group of the index, which lie in memory until it is full: few and large ones are read fast."""
_TOGETHER = 1 << 13
"""Rows whose batches are made one. A batch of its own holds the bytes that it was read from, and takes more than its rows do."""
_PLACES_AT_ONCE = 1 << 20
_INDEX_OPTIONS = {
    "compression": {"number": "zstd", "length": "none", "tiles": "none", "degraded": "zstd"},
    "use_dictionary": ["degraded"],
    "write_statistics": False,
}
_GROUPS_OPTIONS = {"compression": "zstd", "use_dictionary": ["shard", "file"], "write_statistics": False}


class IndexWriter:
    """Writes the facts of all samples to `path`, in the order in which they are added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._joined: list[pa.RecordBatch] = []
        self._single: list[pa.RecordBatch] = []
        self._rows_joined = self._rows_single = 0

    def add(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Take the facts of a group."""
        for batch in batches:
            self._single.append(batch)
            self._rows_single += batch.num_rows
        if self._rows_single >= _TOGETHER:
            self._join()
        if self._rows_joined >= _INDEX_ROWS:
            self._flush()

    def _join(self) -> None:
        import pyarrow as pa

        if self._single:
            columns = [pa.concat_arrays(list(parts)) for parts in zip(*(batch.columns for batch in self._single), strict=True)]
            self._joined.append(pa.RecordBatch.from_arrays(columns, schema=facts_schema()))
            self._rows_joined += self._rows_single
        self._single, self._rows_single = [], 0

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, facts_schema(), **_INDEX_OPTIONS)
        if self._joined:
            self._writer.write_table(pa.Table.from_batches(self._joined), row_group_size=self._rows_joined)
        self._joined, self._rows_joined = [], 0

    def finish(self) -> None:
        """Write what is left, and end the file; one without samples is a file too."""
        self._join()
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)


class Places:
    """Where each row group of samples lies: the columns of `groups.parquet`, 24 bytes a row group besides the shards' names."""

    def __init__(self) -> None:
        self.shards: list[str] = []
        self._files: list[str] = []
        self._file_numbers: dict[str, int] = {}
        self._shard, self._group, self._rows, self._file = (array("i") for _ in range(4))
        self._first = array("q")

    def add_shard(self, name: str, row_groups: Sequence[tuple[str, int, int]]) -> None:
        """Take a shard: for each of its row groups the file of the records, the number of its first record, and its rows."""
        for number, (file, first, rows) in enumerate(row_groups):
            self._shard.append(len(self.shards))
            self._group.append(number)
            self._rows.append(rows)
            self._file.append(self._number_of(file))
            self._first.append(first)
        self.shards.append(name)

    def write(self, path: Path) -> None:
        """Write the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"shard": pa.string(), "group": pa.int32(), "rows": pa.int32(), "file": pa.string(), "first": pa.int64()}
        with pq.ParquetWriter(path, pa.schema(list(types.items())), **_GROUPS_OPTIONS) as writer:
            for table in self._tables():
                writer.write_table(table)

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        for start in range(0, max(len(self._rows), 1), _PLACES_AT_ONCE):
            part = slice(start, start + _PLACES_AT_ONCE)
            columns = {
                "shard": strings([self.shards[at] for at in self._shard[part]]),
                "group": integers(np.frombuffer(self._group[part], np.int32)),
                "rows": integers(np.frombuffer(self._rows[part], np.int32)),
                "file": strings([self._files[at] for at in self._file[part]]),
                "first": integers(np.frombuffer(self._first[part], np.int64), np.int64),
            }
            yield pa.table(columns)

    def _number_of(self, file: str) -> int:
        if file not in self._file_numbers:
            self._file_numbers[file] = len(self._files)
            self._files.append(file)
        return self._file_numbers[file]
