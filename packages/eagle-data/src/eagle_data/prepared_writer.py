"""Writes prepared samples to disk, in shards that are named by what they hold: what did not change is not written again.

A shard holds several groups, a few row groups each, and ends where the digests of its groups say, so that a group that is
added or changed moves the shards behind it without changing them. Promises: the same groups give the same files, whatever lay
there before; every file appears whole or not at all; `index.parquet` and `groups.parquet` come last, and shards that they do
not name are removed then. The layout is described in `prepared`, which reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eagle_data.encode import Encoded
from eagle_data.prepared import context_folder, groups_file, index_file
from eagle_data.prepared_index import IndexWriter, Places
from eagle_data.prepared_rows import ROWS, Row, batches_of, samples_schema

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = b"eagle-data rows 1\n"
_LEAST, _MOST = 32, 128
_LEAST_BYTES, _MOST_BYTES = 8 << 20, 64 << 20
_ONE_OF = 16
"""A shard ends at the earliest behind the least groups, or the least bytes, and at the latest behind the most of either; in
between behind one group of 16, chosen by its digest."""
_SHARD_OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
"""Without dictionaries and statistics a shard is written in half the time and is 6 % larger (5,000 rows, 13 million tokens)."""


@dataclass(frozen=True)
class Group:
    """The rows of one group of records for one context length.

    `file` and `first` say where its record 0 stands; `facts` are batches of facts, a row group each; `samples` gives the
    batches of samples, and is called only where a shard with this group has to be written. `digest` changes when samples do, and
    `size` is about how many bytes they take, the same for the same samples.
    """

    file: str
    first: int
    facts: Sequence[pa.RecordBatch]
    samples: Callable[[], Iterable[pa.RecordBatch]]
    digest: str
    size: int


class PreparedWriter:
    """Writes the samples of a dataset folder, for each of its context lengths; they are there when the block ends well.

    Groups (`add_group`) or single samples (`add`) come in the order in which they are to be read.
    """

    def __init__(self, folder: str | Path, context_lengths: Sequence[int]) -> None:
        self._of = {n: _ContextWriter(Path(folder), n) for n in context_lengths}

    def add(self, context_length: int, where: str, encoded: Encoded, degraded: Sequence[str]) -> None:
        """Store one sample of the record `where`, `file:number`, as planned for `context_length`."""
        file, _, number = where.rpartition(":")
        self._of[context_length].add(file, Row(int(number), encoded, degraded))

    def add_group(self, context_length: int, group: Group) -> None:
        """Store the samples of a group as planned for `context_length`."""
        self._of[context_length].add_group(group)

    def __enter__(self) -> PreparedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for writer in self._of.values():
            if kind is None:
                writer.finish()
            else:
                writer.abandon()


class _ContextWriter:
    def __init__(self, folder: Path, context_length: int) -> None:
        self._folder = context_folder(folder, context_length)
        self._index, self._groups = index_file(folder, context_length), groups_file(folder, context_length)
        self._rows: list[Row] = []
        self._rows_file = ""
        self._shard: list[Group] = []
        self._facts = IndexWriter(_part(self._index))
        self._places = Places()

    def add(self, file: str, row: Row) -> None:
        if self._rows and file != self._rows_file:
            self._flush_rows()
        self._rows_file = file
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush_rows()

    def _flush_rows(self) -> None:
        if self._rows:
            facts, samples = batches_of(self._rows)
            data = memoryview(samples.serialize())
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            self._rows = []
            self.add_group(Group(self._rows_file, 0, [facts], lambda: [samples], digest, len(data)))

    def add_group(self, group: Group) -> None:
        self._flush_rows()
        if not group.facts:
            return
        self._shard.append(group)
        self._facts.add(group.facts)
        if ends_shard(group.digest, len(self._shard), sum(one.size for one in self._shard)):
            self._end_shard()

    def _end_shard(self) -> None:
        groups, self._shard = self._shard, []
        if not groups:
            return
        text = _FORMAT + b"".join(group.digest.encode() for group in groups)
        name = f"rows-{hashlib.blake2b(text, digest_size=16).hexdigest()}"
        sizes = [batch.num_rows for group in groups for batch in group.facts]
        path = self._folder / f"{name}.parquet"
        if not _is_whole(path, sizes):
            _write_shard(path, groups)
        self._places.add_shard(name, [(group.file, group.first, batch.num_rows) for group in groups for batch in group.facts])

    def finish(self) -> None:
        self._flush_rows()
        self._end_shard()
        self._facts.finish()
        self._places.write(_part(self._groups))
        for path in (self._groups, self._index):
            os.replace(_part(path), path)
        used = {f"{name}.parquet" for name in self._places.shards}
        for path in [*self._folder.glob("rows-*.parquet"), *self._folder.glob("*.part")]:
            if path.name not in used:
                path.unlink()

    def abandon(self) -> None:
        self._facts.abandon()
        _part(self._groups).unlink(missing_ok=True)


def ends_shard(digest: str, groups: int, size: int) -> bool:
    """Whether a shard ends behind the group of this `digest`, with which it has so many `groups` and bytes (`size`)."""
    if groups >= _MOST or size >= _MOST_BYTES:
        return True
    return (groups >= _LEAST or size >= _LEAST_BYTES) and int(digest[:8], 16) % _ONE_OF == 0


def _is_whole(path: Path, sizes: Sequence[int]) -> bool:
    """Whether a shard lies there with row groups of these `sizes`; one that was cut short has no end to be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        known = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return [known.row_group(at).num_rows for at in range(known.num_row_groups)] == list(sizes)


def _write_shard(path: Path, groups: Sequence[Group]) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(_part(path), samples_schema(), **_SHARD_OPTIONS) as writer:
            for group in groups:
                for batch in group.samples():
                    writer.write_batch(batch)
        os.replace(_part(path), path)
    except BaseException:
        _part(path).unlink(missing_ok=True)
        raise


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
