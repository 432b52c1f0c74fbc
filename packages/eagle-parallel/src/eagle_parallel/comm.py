"""The two ways in which attention moves tensors between the ranks of a group: an all-to-all of rows, and one hop round a ring.

Both start at once and give a handle, so that work can be issued before the result is asked for. Not differentiable. Collective:
every rank of the group calls them in the same order, also with nothing to send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Pending:
    """A tensor that is on its way; `wait` gives it. On CUDA the current stream waits, not the host."""

    def __init__(self, result: Tensor, works: Sequence[dist.Work], kept: Sequence[Tensor] = ()) -> None:
        self._result, self._works, self._kept = result, works, kept

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        self._works, self._kept = (), ()
        return self._result


def exchange(
    sent: Tensor, sent_rows: Sequence[int], received: Tensor, received_rows: Sequence[int], group: dist.ProcessGroup
) -> Pending:
    """All-to-all of rows along the first dimension, any number for each pair of ranks.

    Args:
        sent: rows for rank 0 of the group, then rank 1, ...; contiguous.
        sent_rows: how many for each rank, on the host.
        received: filled in the same way, contiguous; same trailing shape and dtype.
        received_rows: how many from each rank.
        group: the ranks.

    Returns:
        A handle of `received`.
    """
    work = dist.all_to_all_single(received, sent, list(received_rows), list(sent_rows), group=group, async_op=True)
    return Pending(received, [work] if work is not None else [], (sent,))


def ring_shift(sent: Tensor, group: dist.ProcessGroup) -> Pending:
    """Send a tensor to the next rank of a group and receive one of the same shape and dtype from the previous rank."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    received = torch.empty_like(sent)
    peer: Callable[[int], int] = lambda step: dist.get_global_rank(group, (rank + step) % size)  # noqa: E731
    hops = [dist.P2POp(dist.isend, sent, peer(1), group), dist.P2POp(dist.irecv, received, peer(-1), group)]
    return Pending(received, dist.batch_isend_irecv(hops), (sent,))
