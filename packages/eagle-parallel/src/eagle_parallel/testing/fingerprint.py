"""Record every collective that a rank issues, and compare the records of all ranks.

Ranks that issue different collectives, or the same in another order, hang or exchange the wrong tensors; on a run that happens
to work this check finds them. It sees the operators of torch.distributed, whichever Python function called them, in the thread
that entered the context, and so also in a backward pass on CPU; a backward pass on a GPU has threads of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

_POINT_TO_POINT = ("send", "recv_", "recv_any_source_")
_PER_RANK_ROWS = ("alltoall_base_", "alltoall_")
"""Collectives in which ranks may bring different numbers of rows."""


class Collective(NamedTuple):
    """One call: operator of c10d, global ranks of its group, shape and dtype of its first tensor, and a peer's global rank."""

    name: str
    group: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    peer: int | None = None


@contextmanager
def record_collectives() -> Iterator[list[Collective]]:
    """A list that fills with the collectives which this rank issues inside the context, in order."""
    calls: list[Collective] = []
    with _Recorder(calls):
        yield calls


def check_collectives(by_rank: Sequence[Sequence[Collective]]) -> None:
    """AssertionError, naming the ranks and the call, unless the ranks of a world issued matching collectives.

    Members of a group must issue the same operators on it, with the same dtype and shape (but for the row count of an
    all-to-all), in the same order; sends and receives of a pair must match. Groups of one size must also come in the same order
    on every rank, or two groups could wait for each other.

    Args:
        by_rank: the records of rank 0, 1, ... of one world.
    """
    groups: dict[tuple[int, ...], dict[int, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    pairs: dict[tuple[int, int, str], list[tuple[Any, ...]]] = defaultdict(list)
    outlines = []
    for rank, calls in enumerate(by_rank):
        for call in calls:
            if call.name in _POINT_TO_POINT:
                assert call.peer is not None
                source, target, end = (rank, call.peer, "sent") if call.name == "send" else (call.peer, rank, "received")
                pairs[source, target, end].append((call.shape, call.dtype))
            else:
                for member in call.group:
                    groups[call.group].setdefault(member, [])
                groups[call.group][rank].append(_shared(call))
        outlines.append([(call.name, len(call.group)) for call in calls if call.name not in _POINT_TO_POINT])
    for group, members in groups.items():
        first = min(members)
        for rank, found in members.items():
            _check_equal(f"collectives on group {group}", first, members[first], rank, found)
    for source, target in sorted({pair[:2] for pair in pairs}):
        sent, received = pairs[source, target, "sent"], pairs[source, target, "received"]
        assert sent == received, f"rank {source} sends {sent} to rank {target}, which receives {received}."
    for rank, outline in enumerate(outlines):
        _check_equal("collectives", 0, outlines[0], rank, outline)


def _check_equal(what: str, first: int, expected: Sequence[Any], rank: int, found: Sequence[Any]) -> None:
    for place, (one, two) in enumerate(zip(expected, found, strict=False)):
        assert one == two, f"{what} differ at call {place}: rank {first} issues {one}, rank {rank} issues {two}."
    assert len(expected) == len(found), f"{what}: rank {first} issues {len(expected)}, rank {rank} issues {len(found)}."


def _shared(call: Collective) -> tuple[Any, ...]:
    shape = call.shape[1:] if call.name in _PER_RANK_ROWS else call.shape
    return call.name, shape, call.dtype


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Collective]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.partition(".")[0]
            group = next(_ranks(value) for value in args if isinstance(value, torch.ScriptObject) and _is_group(value))
            tensor = next(_tensors(args), None)
            shape, dtype = ((), "") if tensor is None else (tuple(tensor.shape), str(tensor.dtype))
            peer = group[args[2]] if name in ("send", "recv_") else None
            self._calls.append(Collective(name, group, shape, dtype, peer))
        return func(*args, **(kwargs or {}))


def _is_group(value: torch.ScriptObject) -> bool:
    return value._type().qualified_name().endswith(".ProcessGroup")  # pyright: ignore[reportAttributeAccessIssue]


def _ranks(group: torch.ScriptObject) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(group)))  # pyright: ignore[reportArgumentType]


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
