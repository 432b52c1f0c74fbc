"""The rows of prepared samples as Arrow batches: small facts apart from tokens, so that an index is made without reading tokens.

A batch of facts and a batch of samples stand for the same rows, at most `ROWS` of them. Facts: `number` int32 (which record of
its group the sample is, from 0), `length` and `tiles` int32, `degraded` string (what was given up, joined by commas). Samples:
`input_ids` and `labels` list<int32>, `units` JSON (`eagle_data.units`). Not for files: `prepared_writer`, `prepared`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eagle_data.encode import Encoded
from eagle_data.units import units_to_json

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 128
"""Rows are read at random, and one is read by decoding its whole row group: so many at most."""


@dataclass(frozen=True)
class Row:
    """One sample as planned for a context length; `degraded` is `VisualPlan.record`."""

    number: int
    encoded: Encoded
    degraded: Sequence[str]


def batches_of(rows: Sequence[Row]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The facts and the samples of `rows`, of which there is at least one."""
    import pyarrow as pa

    encoded = [row.encoded for row in rows]
    lengths = np.array([len(one.input_ids) for one in encoded], dtype=np.int32)
    ends = integers(np.concatenate([[0], np.cumsum(lengths)]))
    facts = [
        integers([row.number for row in rows]),
        integers(lengths),
        integers([one.tiles for one in encoded]),
        strings([",".join(row.degraded) for row in rows]),
    ]
    samples = [
        pa.ListArray.from_arrays(ends, integers(np.concatenate([one.input_ids for one in encoded]))),
        pa.ListArray.from_arrays(ends, integers(np.concatenate([one.labels for one in encoded]))),
        strings([units_to_json(one.units) for one in encoded]),
    ]
    return (
        pa.RecordBatch.from_arrays(facts, schema=facts_schema()),
        pa.RecordBatch.from_arrays(samples, schema=samples_schema()),
    )


def integers(values: Sequence[int] | np.ndarray, kind: type[np.integer[Any]] = np.int32) -> Any:
    """An Arrow array of integers, from its memory: `pyarrow.array` would import pandas where it is installed, half a second."""
    import pyarrow as pa

    numbers = np.ascontiguousarray(values, dtype=kind)
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def strings(values: Sequence[str]) -> Any:
    """An Arrow array of strings, from its memory, as `integers`."""
    import pyarrow as pa

    data = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(ends), pa.py_buffer(b"".join(data)))


def facts_schema() -> Any:
    """The columns of facts, as `index.parquet` has them too."""
    import pyarrow as pa

    return pa.schema([("number", pa.int32()), ("length", pa.int32()), ("tiles", pa.int32()), ("degraded", pa.string())])


def samples_schema() -> Any:
    """The columns of samples, as shards have them too."""
    import pyarrow as pa

    tokens = pa.list_(pa.int32())
    return pa.schema([("input_ids", tokens), ("labels", tokens), ("units", pa.string())])
