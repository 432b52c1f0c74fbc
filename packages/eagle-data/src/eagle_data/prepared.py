"""Prepared samples on disk, read by row: a folder `context-<n>` per dataset and context length, opened by reading 8 bytes a row.

- `index.parquet`, a row per sample: `number`, `length` and `tiles` int32, `degraded` string (see `prepared_rows`).
- `rows-<digest>.parquet`, shards that are named by their content: `input_ids` and `labels` list<int32>, `units` JSON.
- `groups.parquet`, a row per row group of samples, in order: its `shard`, its number there (`group`), its `rows`, and where the
  record stands from which `number` counts, `file` and `first`.

No pixels are stored. `prepared_writer` writes these files. Not for finding samples by their content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from eagle_data.encode import Encoded
from eagle_data.errors import EagleDataError
from eagle_data.fetch import Fetch
from eagle_data.media_index import PreparedMedia
from eagle_data.units import units_from_json

if TYPE_CHECKING:
    import pyarrow as pa

_GROUPS_KEPT = 8
_SHARDS_KEPT = 32


def context_folder(folder: str | Path, context_length: int) -> Path:
    """Where the samples of a dataset folder planned for `context_length` lie."""
    return Path(folder) / f"context-{context_length}"


def index_file(folder: str | Path, context_length: int) -> Path:
    """The file with a row per sample; it is there once the samples are complete."""
    return context_folder(folder, context_length) / "index.parquet"


def groups_file(folder: str | Path, context_length: int) -> Path:
    """The file that says in which shard each sample lies, and where it comes from."""
    return context_folder(folder, context_length) / "groups.parquet"


class PreparedDataset:
    """The samples of a dataset folder for one context length, safe to read from several threads.

    `lengths` and `tiles` int32 `[samples]` are in memory; what `where` (4 bytes a sample) and `degraded` (1 byte) need is read
    when they are first asked, tokens on demand. `media` opens its videos by their stored indexes and has the leave to fetch
    addresses, `fetch` (None: none are fetched, see `eagle_data.fetch`).

    Raises FileNotFoundError where nothing was prepared for the context length, EagleDataError for damaged files.
    """

    def __init__(self, folder: str | Path, context_length: int, *, name: str | None = None, fetch: Fetch | None = None):
        self.path = context_folder(folder, context_length)
        self._index = index_file(folder, context_length)
        if not self._index.is_file():
            raise FileNotFoundError(
                f"{self._index} does not exist; prepare the dataset for context_length {context_length} first"
            )
        self.name = name or Path(folder).name
        self.media = PreparedMedia(folder, fetch=fetch)
        self.lengths, self.tiles = self._columns("length", "tiles")
        table = _read(groups_file(folder, context_length))
        self._shards = table["shard"].to_pylist()
        self._files = table["file"].to_pylist()
        self._group, self._first, rows = (np.array(table[name].to_pylist(), np.int64) for name in ("group", "first", "rows"))
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        if self._starts[-1] != len(self.lengths):
            raise _damaged(self._index, f"it has {len(self.lengths)} samples, the row groups {self._starts[-1]}")
        self._lock = Lock()
        self._footers: OrderedDict[str, Any] = OrderedDict()
        self._decoded: OrderedDict[int, pa.Table] = OrderedDict()
        self._asked: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[Encoded, str]:
        """The encoded sample of a row and its provenance; IndexError outside 0 .. len - 1."""
        at = self._row_group(row)
        table, inner = self._samples(at), row - int(self._starts[at])
        encoded = Encoded(
            input_ids=_int32(table["input_ids"][inner].values),
            labels=_int32(table["labels"][inner].values),
            units=units_from_json(table["units"][inner].as_py()),
        )
        return encoded, self.where(row)

    def where(self, row: int) -> str:
        """The provenance of a row, `file:line`."""
        at = self._row_group(row)
        return f"{self._files[at]}:{int(self._first[at]) + int(self._column('number')[row])}"

    def degraded(self, row: int) -> bool:
        """Whether the sample of a row gave up frames or tiles to fit."""
        self._row_group(row)
        return bool(self._column("degraded")[row])

    def _row_group(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has {len(self)} samples, there is no row {row}")
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _column(self, name: str) -> np.ndarray:
        """A column of the index that is read when it is first asked for."""
        with self._lock:
            if name not in self._asked:
                [self._asked[name]] = self._columns(name)
            return self._asked[name]

    def _columns(self, *names: str) -> tuple[np.ndarray, ...]:
        """Columns of the index, a row group at a time, so that nothing lies in memory twice; of strings whether they are not
        empty."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._index, memory_map=True) as file:
                kinds = [bool if file.schema_arrow.field(name).type == pa.string() else np.int32 for name in names]
                columns = tuple(np.empty(file.metadata.num_rows, dtype=kind) for kind in kinds)
                start = 0
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=list(names))
                    for name, column in zip(names, columns, strict=True):
                        _fill(column[start : start + table.num_rows], table[name].chunks)
                    start += table.num_rows
        except (OSError, KeyError, pa.ArrowException) as error:
            raise _damaged(self._index, str(error)) from error
        return columns

    def _samples(self, at: int) -> pa.Table:
        """A row group of samples. Two threads may decode one at the same time; the lock holds for what is kept only."""
        with self._lock:
            if at in self._decoded:
                self._decoded.move_to_end(at)
                return self._decoded[at]
            footer = self._footers.get(self._shards[at])
        table, footer = self._read_group(at, footer)
        with self._lock:
            _keep(self._decoded, at, table, _GROUPS_KEPT)
            _keep(self._footers, self._shards[at], footer, _SHARDS_KEPT)
        return table

    def _read_group(self, at: int, footer: Any) -> tuple[pa.Table, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / f"{self._shards[at]}.parquet"
        try:
            with pq.ParquetFile(path, memory_map=True, metadata=footer) as file:
                return file.read_row_group(int(self._group[at]), use_threads=False), file.metadata
        except FileNotFoundError as error:
            reason = f"{path} is gone; open the dataset again if it was prepared anew meanwhile, else prepare it again"
            raise FileNotFoundError(reason) from error
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, str(error)) from error


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)


def _fill(column: np.ndarray, chunks: Iterable[Any]) -> None:
    """Copy Arrow arrays of int32, or whether strings are not empty."""
    start = 0
    for chunk in chunks:
        end = start + len(chunk)
        column[start:end] = np.diff(_int32(chunk, 1)) > 0 if column.dtype == bool else _int32(chunk)
        start = end


def _int32(array: Any, more: int = 0) -> np.ndarray:
    """The numbers of an Arrow array as they lie in memory (of strings, with one `more`, where each begins and the last ends);
    `to_numpy` would import pandas where it is installed, half a second."""
    if not len(array):
        return np.zeros(more, dtype=np.int32)
    return np.frombuffer(array.buffers()[1], dtype=np.int32, count=len(array) + more, offset=4 * array.offset)


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> EagleDataError:
    return EagleDataError(f"{path} is missing or damaged ({reason}); prepare the dataset again")
