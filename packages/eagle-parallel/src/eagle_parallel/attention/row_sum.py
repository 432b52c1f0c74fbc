"""Rows of K and V that are each the sum of a few rows of one or two other tensors: one pass over memory, and one launch on a GPU.

Sums are float32 (float64 for float64) in the order of the table and rounded once; a single source is copied as it is. On GPUs
the Triton kernel of `row_sum_kernel` runs, where triton is installed; elsewhere plain torch gives the same values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from eagle_parallel.kernels.segments import to_device

Pair = tuple[Tensor, Tensor]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True, eq=False)
class RowSum:
    """Row i of the target is the sum over j of source row table[i, j]; -1 adds nothing. Build with `RowSum.of`.

    Rows below `first_rows` are the first source's, the others, less first_rows, the second's.
    """

    table: Tensor  # int32 [targets, most]
    first_rows: int

    @classmethod
    def of(cls, targets: Tensor, sources: Tensor, rows: int, first_rows: int, device: torch.device | str) -> RowSum:
        """Add source row sources[i] to target row targets[i]; equal targets are summed in the order given.

        Args:
            targets: int64 [pairs], in any order.
            sources: int64 [pairs].
            rows: target rows; those that are not named become 0.
            first_rows: rows of the first source.
            device: where the table lives.
        """
        order = targets.argsort(stable=True)
        targets, sources = targets[order], sources[order]
        counts = torch.bincount(targets, minlength=rows)
        place = torch.arange(targets.numel()) - (counts.cumsum(0) - counts)[targets]
        table = torch.full((rows, int(counts.max()) if rows else 1), -1, dtype=torch.int64)
        table[targets, place] = sources
        return cls(to_device(table, device, torch.int32), first_rows)

    def into(self, target: Pair, first: Pair, second: Pair | None = None) -> None:
        """Write all rows of the target.

        Args:
            target: K and V [rows, heads, head_dim], written; views whose last two dimensions are dense.
            first: K and V of the first source [first_rows, heads, head_dim].
            second: K and V of the second source, None where the table names none of it.
        """
        if not target[0].numel():
            return
        if target[0].is_cuda and target[0].dtype != torch.float64 and _has_triton():
            from eagle_parallel.attention.row_sum_kernel import launch

            launch(self.table, self.first_rows, target, first, second or first)
            return
        for place in range(2):
            self._plain(target[place], first[place], None if second is None else second[place])

    def _plain(self, target: Tensor, first: Tensor, second: Tensor | None) -> None:
        wide = torch.promote_types(torch.promote_types(first.dtype, target.dtype), torch.float32)
        source = first if second is None else torch.cat((first.to(wide), second.to(wide)))
        total = None
        for column in self.table.long().unbind(1) if source.shape[0] else ():
            part = source.index_select(0, column.clamp(min=0)).to(wide).masked_fill(column[:, None, None] < 0, 0)
            total = part if total is None else total + part
        target.copy_(torch.zeros_like(target) if total is None else total)
