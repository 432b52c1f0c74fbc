"""What stands for a process group where all ranks share one device: rows change hands inside one process, or come from a log.

`Meeting` joins ranks that are threads; each exchange is a real copy, and what a rank received can be logged. `Replay` gives one
rank alone the rows of such a log, so that its own work can be timed, weighed and checked for host synchronisation without the
others. Exchanges are copies on the current stream, which all ranks must share. Not a transport: it moves nothing between devices.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


class Wire(Protocol):
    """How one rank of one group receives."""

    def trade(self, sent: Tensor, sent_rows: Sequence[int], received: Tensor, received_rows: Sequence[int]) -> None:
        """Fill `received` with the rows that every rank of the group sends to this one, by rank."""
        ...

    def shift(self, sent: Tensor, received: Tensor) -> None:
        """Fill `received` with what the previous rank of the group sends."""
        ...


@dataclass(eq=False)
class LocalGroup:
    """Takes the place of a process group: size and rank, and the wire. `log` collects what is received, where it is a list."""

    size: int
    rank: int
    wire: Wire
    log: list[Tensor] | None = None

    def keep(self, received: Tensor) -> None:
        """Log a copy of what has arrived."""
        if self.log is not None:
            self.log.append(received.clone())


@dataclass(eq=False)
class Meeting:
    """Where the threads of one group exchange references. A thread that fails breaks the barrier for the others."""

    size: int
    seconds: float = 120.0
    _slots: list[Any] = field(init=False)
    _barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self._slots = [None] * self.size
        self._barrier = threading.Barrier(self.size, timeout=self.seconds)

    def swap(self, rank: int, value: object) -> list[Any]:
        """Every rank's value, by rank, once all have come."""
        self._slots[rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def end(self) -> None:
        """Let nobody wait any more: the waiting threads raise BrokenBarrierError."""
        self._barrier.abort()


@dataclass(eq=False)
class MeetingWire:
    """One rank's place in a meeting."""

    meeting: Meeting
    rank: int

    def trade(self, sent: Tensor, sent_rows: Sequence[int], received: Tensor, received_rows: Sequence[int]) -> None:
        parts = [other.split(list(rows))[self.rank] for other, rows in self.meeting.swap(self.rank, (sent, sent_rows))]
        for place, part, rows in zip(received.split(list(received_rows)), parts, received_rows, strict=True):
            if part.shape[0] != rows or part.dtype != received.dtype:
                raise ValueError(
                    f"rank {self.rank} expects {rows} rows of {received.dtype} but {part.shape[0]} of {part.dtype} arrive."
                )
            place.copy_(part)

    def shift(self, sent: Tensor, received: Tensor) -> None:
        received.copy_(self.meeting.swap(self.rank, sent)[self.rank - 1])


@dataclass(eq=False)
class Replay:
    """Gives the logged rows again and again, in their order; one round is what was logged."""

    log: Sequence[Tensor]
    _next: int = 0

    def trade(self, sent: Tensor, sent_rows: Sequence[int], received: Tensor, received_rows: Sequence[int]) -> None:
        self.shift(sent, received)

    def shift(self, sent: Tensor, received: Tensor) -> None:
        received.copy_(self.log[self._next])
        self._next = (self._next + 1) % len(self.log)


@dataclass(frozen=True)
class Hop:
    """The part of torch.distributed's P2POp that a ring's hop needs."""

    op: str
    tensor: Tensor
    peer: int
    group: LocalGroup


class LocalDistributed:
    """The functions of torch.distributed that `eagle_parallel.comm` calls, for groups that are `LocalGroup`."""

    P2POp = Hop
    isend = "isend"
    irecv = "irecv"

    @staticmethod
    def get_rank(group: LocalGroup) -> int:
        return group.rank

    @staticmethod
    def get_world_size(group: LocalGroup) -> int:
        return group.size

    @staticmethod
    def get_global_rank(group: LocalGroup, place: int) -> int:
        return place

    @staticmethod
    def all_to_all_single(
        received: Tensor,
        sent: Tensor,
        received_rows: Sequence[int],
        sent_rows: Sequence[int],
        *,
        group: LocalGroup,
        async_op: bool,
    ) -> None:
        if not (received.is_contiguous() and sent.is_contiguous()) or not async_op:
            raise ValueError("all_to_all_single: both buffers must be contiguous and the call asynchronous, as for NCCL.")
        group.wire.trade(sent, sent_rows, received, received_rows)
        group.keep(received)

    @staticmethod
    def batch_isend_irecv(hops: Sequence[Hop]) -> list[Any]:
        sending, receiving = hops
        group = sending.group
        if (sending.op, receiving.op) != ("isend", "irecv") or sending.peer != (group.rank + 1) % group.size:
            raise ValueError("batch_isend_irecv: expected a send to the next rank and a receive from the previous one.")
        group.wire.shift(sending.tensor, receiving.tensor)
        group.keep(receiving.tensor)
        return []


def received_bytes(log: Sequence[Tensor]) -> list[int]:
    """Bytes of every logged exchange, a rank's own rows included (they are empty where only others' rows travel)."""
    return [tensor.numel() * tensor.element_size() for tensor in log]
