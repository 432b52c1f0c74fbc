"""Where the key rows of a gathered call come from and where their gradients go, as few copies as the layout allows.

The kernel wants the keys of each segment next to each other: `packed` rows, filled from this rank's own rows and from received
ones (a row that two segments see is packed twice). On the way back a row with one contribution is copied as it is; only rows
with several (seen by two segments, or by another rank too) are summed, in float32 or wider, in a fixed order without atomics on
equal rows. Plain documents of a pack cost one copy each way, a pack that is whole on its ranks none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from eagle_parallel.comm import Pending
from eagle_parallel.kernels.segments import to_device

# More runs than this are copied through an index: a launch costs the host more than the index costs the device.
_FEW = 12


@dataclass(frozen=True, eq=False)
class RowCopy:
    """Rows of one tensor copied to rows of another, the same everywhere else. Build with `RowCopy.of`."""

    runs: tuple[tuple[int, int, int], ...]  # (source, target, count), where they are few
    source: Tensor | None
    target: Tensor | None

    @classmethod
    def of(cls, source: Sequence[int] | Tensor, target: Sequence[int] | Tensor, device: torch.device | str) -> RowCopy:
        """Row source[i] to row target[i]; targets are distinct."""
        source, target = (torch.as_tensor(rows, dtype=torch.int64) for rows in (source, target))
        breaks = ((source.diff() != 1) | (target.diff() != 1)).nonzero().flatten() + 1
        if source.numel() and breaks.numel() < _FEW:
            borders = [0, *breaks.tolist(), source.numel()]
            runs = [(int(source[a]), int(target[a]), b - a) for a, b in pairwise(borders)]
            return cls(tuple(runs), None, None)
        if not source.numel():
            return cls((), None, None)
        return cls((), to_device(source, device), to_device(target, device))

    def into(self, target: Tensor, source: Tensor) -> None:
        """Copy, converting to target's dtype. Rows are the first dimension, the others are equal."""
        if self.source is not None and self.target is not None:
            target.index_copy_(0, self.target, source.index_select(0, self.source).to(target.dtype))
        for first, place, count in self.runs:
            target[place : place + count] = source[first : first + count]


@dataclass(frozen=True, eq=False)
class KeyRows:
    """The copies of one rank's call. Build with `KeyRows.of`."""

    packed: int
    as_they_lie: bool  # the packed rows are this rank's own rows, each with one contribution
    own: RowCopy  # own row -> packed row
    received: RowCopy  # received row -> packed row
    own_plain: RowCopy  # packed row -> own row: the only contribution
    received_plain: RowCopy  # packed row -> received row
    cover: Tensor  # for each summed row the packed row of its first contribution
    sums: tuple[tuple[Tensor, Tensor], ...]  # (summed rows, packed rows) of further ones; distinct within an entry
    own_summed: RowCopy  # summed row -> own row
    received_summed: RowCopy  # summed row -> received row
    arrivals: Tensor  # for each row that comes back from another rank its summed row

    @classmethod
    def of(
        cls, keys: Tensor, turns: Tensor, own_rows: int, received_rows: int, sent: Tensor, device: torch.device | str
    ) -> KeyRows:
        """The copies of a call.

        Args:
            keys: int64 [packed], for each packed row its own row, or own_rows + its received row.
            turns: int64 [packed], the turn of its segment: rows of one turn are distinct, turn 0 has each row.
            own_rows: rows of this rank.
            received_rows: rows that it receives.
            sent: int64, the own rows that it sends, rank after rank.
            device: where index tensors live.
        """
        rows = own_rows + received_rows
        several = torch.bincount(keys, minlength=rows) > 1
        several[sent] = True
        packed, mine = torch.arange(keys.numel()), keys < own_rows
        first = torch.full((rows,), -1, dtype=torch.int64)
        first[keys[turns == 0]] = packed[turns == 0]
        summed = several.nonzero().flatten()
        place = torch.full((rows,), -1, dtype=torch.int64)
        place[summed] = torch.arange(summed.numel())
        later = [(turns == turn) & several[keys] for turn in range(1, int(turns.max()) + 1 if turns.numel() else 0)]
        plain = ~several[keys]
        theirs = summed >= own_rows
        return cls(
            packed=keys.numel(),
            as_they_lie=not received_rows and not summed.numel() and torch.equal(keys, torch.arange(own_rows)),
            own=RowCopy.of(keys[mine], packed[mine], device),
            received=RowCopy.of(keys[~mine] - own_rows, packed[~mine], device),
            own_plain=RowCopy.of(packed[plain & mine], keys[plain & mine], device),
            received_plain=RowCopy.of(packed[plain & ~mine], keys[plain & ~mine] - own_rows, device),
            cover=to_device(first[summed], device),
            sums=tuple((to_device(place[keys[chosen]], device), to_device(packed[chosen], device)) for chosen in later),
            own_summed=RowCopy.of(place[summed[~theirs]], summed[~theirs], device),
            received_summed=RowCopy.of(place[summed[theirs]], summed[theirs] - own_rows, device),
            arrivals=to_device(place[sent], device),
        )

    def pack(self, own: Sequence[Tensor], coming: Pending | None) -> Tensor:
        """Packed rows [packed, heads, head_dim]: `own` tensors of this rank's rows side by side, then what arrives."""
        width = sum(tensor.shape[1] for tensor in own)
        packed = own[0].new_empty((self.packed, width, own[0].shape[2]))
        begin = 0
        for tensor in own:
            self.own.into(packed[:, begin : begin + tensor.shape[1]], tensor)
            begin += tensor.shape[1]
        if coming is not None:
            self.received.into(packed, coming.wait())
        return packed

    def sum(self, packed: Tensor) -> Tensor:
        """[summed, heads, head_dim], float32 or wider: what this rank contributes to rows with several contributions."""
        wide = torch.promote_types(packed.dtype, torch.float32)
        total = packed.index_select(0, self.cover).to(wide)
        for rows, copies in self.sums:
            total.index_add_(0, rows, packed.index_select(0, copies).to(wide))
        return total
