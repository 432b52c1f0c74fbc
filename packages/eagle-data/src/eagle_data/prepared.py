"""Prepared samples on disk: one parquet file per dataset and context length, read by row.

Columns: `where` string, `input_ids` and `labels` list<int32>, `units` JSON (see `eagle_data.units`), `tiles` int32,
`length` int32, `degraded` string. No pixels are stored. Row groups are small, because rows are read in random order.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from eagle_data.encode import Encoded
from eagle_data.fetch import Fetch
from eagle_data.media_index import PreparedMedia
from eagle_data.units import units_from_json, units_to_json

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 128
_GROUPS_KEPT = 8


def prepared_file(folder: str | Path, context_length: int) -> Path:
    """Where the samples of a dataset folder planned for `context_length` lie."""
    return Path(folder) / f"context-{context_length}.parquet"


class PreparedWriter:
    """Writes one file per context length, in row groups; the files take their names when the block ends well."""

    def __init__(self, folder: Path, context_lengths: Sequence[int]):
        import pyarrow.parquet as pq

        self._schema = prepared_schema()
        self._paths = {n: prepared_file(folder, n) for n in context_lengths}
        self._writers = {n: pq.ParquetWriter(_part(path), self._schema, compression="zstd") for n, path in self._paths.items()}
        self._rows: dict[int, list[dict[str, Any]]] = {n: [] for n in context_lengths}

    def add(self, context_length: int, where: str, encoded: Encoded, degraded: Sequence[str]) -> None:
        """Store one sample as planned for `context_length`; `degraded` is `VisualPlan.record`."""
        rows = self._rows[context_length]
        rows.append(
            {
                "where": where,
                "input_ids": encoded.input_ids,
                "labels": encoded.labels,
                "units": units_to_json(encoded.units),
                "tiles": encoded.tiles,
                "length": len(encoded.input_ids),
                "degraded": ",".join(degraded),
            }
        )
        if len(rows) == ROW_GROUP:
            self._flush(context_length)

    def add_batch(self, context_length: int, where: Sequence[str], rows: pa.RecordBatch) -> None:
        """Store rows that have the file's columns behind a first one, which `where` replaces, as one row group."""
        import pyarrow as pa

        self._flush(context_length)
        columns = [pa.array(where, pa.string()), *rows.columns[1:]]
        self._writers[context_length].write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def _flush(self, context_length: int) -> None:
        import pyarrow as pa

        rows = self._rows[context_length]
        if rows:
            self._writers[context_length].write_table(pa.Table.from_pylist(rows, schema=self._schema))
            rows.clear()

    def __enter__(self) -> PreparedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for n, writer in self._writers.items():
            if kind is None:
                self._flush(n)
            writer.close()
        for path in self._paths.values():
            if kind is None:
                os.replace(_part(path), path)
            else:
                _part(path).unlink(missing_ok=True)


class PreparedDataset:
    """The samples of one prepared file, safe to read from several threads.

    `lengths` and `tiles` int32 `[samples]` and the provenance are in memory; tokens are read on demand. `media` opens its videos
    by their stored indexes and has the leave to fetch addresses, `fetch` (None: none are fetched, see `eagle_data.fetch`).
    """

    def __init__(self, folder: str | Path, context_length: int, *, name: str | None = None, fetch: Fetch | None = None):
        import pyarrow.parquet as pq

        self.path = prepared_file(folder, context_length)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist; prepare the dataset for context_length {context_length} first")
        self.name = name or Path(folder).name
        self.media = PreparedMedia(folder, fetch=fetch)
        self._file = pq.ParquetFile(self.path, memory_map=True)
        table = self._file.read(columns=["length", "tiles", "where", "degraded"])
        self.lengths: np.ndarray = table["length"].to_numpy()
        self.tiles: np.ndarray = table["tiles"].to_numpy()
        self._where = table["where"].combine_chunks()
        self._degraded = table["degraded"].combine_chunks()
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._lock = Lock()
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[Encoded, str]:
        """The encoded sample of a row and its provenance; IndexError outside 0 .. len - 1."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, there is no row {row}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        table, at = self._group(group), row - int(self._starts[group])
        encoded = Encoded(
            input_ids=table["input_ids"][at].values.to_numpy(),
            labels=table["labels"][at].values.to_numpy(),
            units=units_from_json(table["units"][at].as_py()),
        )
        return encoded, self.where(row)

    def where(self, row: int) -> str:
        """The provenance of a row, `file:line`."""
        return self._where[row].as_py()

    def degraded(self, row: int) -> bool:
        """Whether the sample of a row gave up frames or tiles to fit."""
        return bool(self._degraded[row].as_py())

    def _group(self, number: int) -> pa.Table:
        # One reader must not be used by two threads at once.
        with self._lock:
            if number in self._groups:
                self._groups.move_to_end(number)
            else:
                self._groups[number] = self._file.read_row_group(number, columns=["input_ids", "labels", "units"])
                if len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            return self._groups[number]


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def prepared_schema() -> Any:
    """The columns of a prepared file."""
    import pyarrow as pa

    return pa.schema(
        [
            ("where", pa.string()),
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.int32())),
            ("units", pa.string()),
            ("tiles", pa.int32()),
            ("length", pa.int32()),
            ("degraded", pa.string()),
        ]
    )
