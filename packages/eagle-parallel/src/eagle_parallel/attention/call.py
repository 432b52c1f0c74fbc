"""One kernel call of an attention step as index tensors: which query rows meet which key rows, and the transpose of the copy.

Keys are copied so that those of a segment lie together (a row that two segments see is copied twice), which makes any set of
pieces one varlen call. Gradients of copies are summed in a fixed order, without atomics, so two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from eagle_parallel.kernels.segments import Segments, to_device


@dataclass(frozen=True, eq=False)
class Call:
    """Build with `Call.of`. `queries` and `keys` are None where the rows are taken as they lie."""

    segments: Segments
    queries: Tensor | None
    keys: Tensor | None
    key_rows: int
    # For each row the packed row of one of its copies, where every row has one.
    cover: Tensor | None
    # (rows, copies) of the others: sums[i] adds packed row copies[j] to row rows[j]; the rows of one entry are distinct.
    sums: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(
        cls,
        queries: Sequence[tuple[int, int]],
        keys: Sequence[Sequence[tuple[int, int]]],
        turns: Sequence[int],
        *,
        query_rows: int,
        key_rows: int,
        causal: bool,
        device: torch.device | str,
    ) -> Call:
        """The call of some segments.

        Args:
            queries: the query rows (start, end) of each segment.
            keys: for each segment the runs of key rows (start, end) that it sees, in the order of their positions.
            turns: for each segment a number; key rows of segments with the same number do not overlap.
            query_rows: rows of the query tensor.
            key_rows: rows of the key tensor.
            causal: the last query of each segment sees all its keys, the one before it one less, ...
            device: where the index tensors live.
        """
        lengths = [sum(end - start for start, end in runs) for runs in keys]
        segments = Segments.of([end - start for start, end in queries], lengths, causal=causal, device=device)
        query_index, key_index = row_index(queries), row_index([run for runs in keys for run in runs])
        queries_as_they_lie, keys_as_they_lie = _is_identity(query_index, query_rows), _is_identity(key_index, key_rows)
        cover, sums = None, []
        starts = [0, *accumulate(lengths)]
        for turn in sorted(set(turns)) if not keys_as_they_lie else ():
            chosen = [place for place, number in enumerate(turns) if number == turn]
            copies = row_index([(starts[place], starts[place + 1]) for place in chosen])
            rows = key_index[copies]
            if rows.numel() == key_rows:
                cover = to_device(copies[rows.argsort()], device)
            else:
                sums.append((to_device(rows, device), to_device(copies, device)))
        return cls(
            segments,
            None if queries_as_they_lie else to_device(query_index, device),
            None if keys_as_they_lie else to_device(key_index, device),
            key_rows,
            cover,
            tuple(sums),
        )

    @property
    def empty(self) -> bool:
        return not self.segments.query_lengths

    def pack(self, rows: Tensor) -> Tensor:
        """Key rows in segment order."""
        return rows if self.keys is None else rows.index_select(0, self.keys)

    def unpack(self, packed: Tensor) -> Tensor:
        """The transpose of `pack`: gradients of copies summed to their rows, in float32 (float64 for float64)."""
        wide = torch.promote_types(packed.dtype, torch.float32)
        if self.keys is None:
            return packed.to(wide)
        if self.cover is not None:
            rows = packed.index_select(0, self.cover).to(wide)
        else:
            rows = packed.new_zeros((self.key_rows, *packed.shape[1:]), dtype=wide)
        for where, copies in self.sums:
            rows.index_add_(0, where, packed.index_select(0, copies).to(wide))
        return rows


def row_index(runs: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of some runs (start, end), one after the other: int64 on the CPU."""
    if not runs:
        return torch.zeros(0, dtype=torch.int64)
    starts, ends = torch.tensor(runs, dtype=torch.int64).unbind(1)
    lengths = ends - starts
    shift = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
    return torch.arange(shift.numel()) + shift


def _is_identity(index: Tensor, rows: int) -> bool:
    return index.numel() == rows and torch.equal(index, torch.arange(rows))
