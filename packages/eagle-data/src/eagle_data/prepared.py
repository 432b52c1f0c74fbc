"""Prepared samples on disk: one parquet file per dataset and context length, read by row.

Columns: `where` string, `input_ids` and `labels` list<int32>, `units` JSON (see `eagle_data.units`), `tiles` int32,
`length` int32, `degraded` string. No pixels are stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eagle_data.encode import Encoded
from eagle_data.units import units_from_json, units_to_json

ROW_GROUP = 512


def _schema() -> Any:
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


def prepared_file(folder: str | Path, context_length: int) -> Path:
    """Where the samples of a dataset folder planned for `context_length` lie."""
    return Path(folder) / f"context-{context_length}.parquet"


class PreparedWriter:
    """Writes one file per context length, in row groups; the files take their names when the block ends well."""

    def __init__(self, folder: Path, context_lengths: Sequence[int]):
        import pyarrow.parquet as pq

        self._paths = {n: prepared_file(folder, n) for n in context_lengths}
        self._writers = {
            n: pq.ParquetWriter(path.with_name(path.name + ".part"), _schema(), compression="zstd") for n, path in self._paths.items()
        }
        self._rows: dict[int, list[dict[str, Any]]] = {n: [] for n in context_lengths}

    def add(self, context_length: int, where: str, encoded: Encoded, degraded: Sequence[str]) -> None:
        """Store one sample as planned for `context_length`."""
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

    def _flush(self, context_length: int) -> None:
        import pyarrow as pa

        rows = self._rows[context_length]
        if rows:
            self._writers[context_length].write_table(pa.Table.from_pylist(rows, schema=_schema()))
            rows.clear()

    def __enter__(self) -> PreparedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for n, writer in self._writers.items():
            if kind is None:
                self._flush(n)
            writer.close()
        if kind is None:
            for path in self._paths.values():
                os.replace(path.with_name(path.name + ".part"), path)


class PreparedDataset:
    """The samples of one prepared file: `lengths` and `tiles` int32 `[samples]` in memory, rows on demand."""

    def __init__(self, folder: str | Path, context_length: int, *, name: str | None = None):
        import pyarrow.parquet as pq

        self.path = prepared_file(folder, context_length)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist; prepare the dataset for context_length {context_length} first")
        self.name = name or Path(folder).name
        self._table = pq.read_table(self.path, memory_map=True)
        self.lengths: np.ndarray = self._table["length"].to_numpy()
        self.tiles: np.ndarray = self._table["tiles"].to_numpy()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[Encoded, str]:
        """The encoded sample of a row and its provenance."""
        table = self._table
        encoded = Encoded(
            input_ids=np.asarray(table["input_ids"][row].values, dtype=np.int32),
            labels=np.asarray(table["labels"][row].values, dtype=np.int32),
            units=units_from_json(table["units"][row].as_py()),
        )
        return encoded, table["where"][row].as_py()

    def where(self, row: int) -> str:
        """The provenance of a row, `file:line`."""
        return self._table["where"][row].as_py()

    def degraded(self, row: int) -> bool:
        """Whether the sample of a row gave up frames or tiles to fit."""
        return bool(self._table["degraded"][row].as_py())
