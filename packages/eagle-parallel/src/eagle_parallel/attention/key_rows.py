"""Where the key rows of a gathered call come from and where their gradients go: four tables, each carried out in one pass.

The kernel wants the keys of each segment next to each other: `packed` rows, taken from this rank's own rows and from received
ones (a row that two segments see is packed twice). On the way back every row is the sum of its copies, in float32 or wider, in a
fixed order without atomics: first this rank's, then those that come back from other ranks, rank after rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle_parallel.attention.row_sum import RowSum


@dataclass(frozen=True, eq=False)
class KeyRows:
    """The rows of one rank's call. Build with `KeyRows.of`. Tables of the device, sources as each says."""

    packed: int
    as_they_lie: bool  # the packed rows are this rank's own rows, each once, and no other rank sees them
    send: RowSum  # sent rows, rank after rank, from own rows
    pack: RowSum  # packed rows from own rows and received ones
    back: RowSum  # what goes back for received rows, from packed rows
    own: RowSum  # own rows from packed rows and what comes back for sent rows

    @classmethod
    def of(
        cls,
        keys: Tensor,
        turns: Tensor,
        own_rows: int,
        received_rows: int,
        sent: Tensor,
        device: torch.device | str,
    ) -> KeyRows:
        """The tables of a call.

        Args:
            keys: int64 [packed], for each packed row its own row, or own_rows + its received row.
            turns: int64 [packed], the turn of its segment: copies of a row are summed in the order of turns.
            own_rows: rows of this rank.
            received_rows: rows that it receives, from rank after rank.
            sent: int64, the own rows that it sends, rank after rank.
            device: where index tensors live.
        """
        packed = torch.arange(keys.numel())
        ordered = turns.argsort(stable=True)
        mine = keys[ordered] < own_rows
        own_keys, own_packed = keys[ordered][mine], packed[ordered][mine]
        coming_back = keys.numel() + torch.arange(sent.numel())
        return cls(
            packed=keys.numel(),
            as_they_lie=not received_rows and not sent.numel() and torch.equal(keys, torch.arange(own_rows)),
            send=RowSum.of(torch.arange(sent.numel()), sent, sent.numel(), own_rows, device),
            pack=RowSum.of(packed, keys, keys.numel(), own_rows, device),
            back=RowSum.of(keys[ordered][~mine] - own_rows, packed[ordered][~mine], received_rows, keys.numel(), device),
            own=RowSum.of(torch.cat((own_keys, sent)), torch.cat((own_packed, coming_back)), own_rows, keys.numel(), device),
        )


def halves(fused: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of a buffer that holds their heads side by side, [rows, 2 * heads, head_dim]; views."""
    width = fused.shape[1] // 2
    return fused[:, :width], fused[:, width:]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Blocks of heads side by side; one block as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
