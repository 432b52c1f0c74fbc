"""Context-parallel ranks as threads of one process on one device: `cp_attention` and its backward pass, with no NCCL.

Autograd runs the backward pass of all CUDA tensors of a device in one thread, where an exchange of two ranks would wait for ever.
Therefore autograd is left out: while `hand_driven` is active, the forward functions of the attention steps note themselves on the
tape of their rank, and `HandDriven.backward` calls their backward functions in reverse order, in the rank's own thread. The code
that runs is the package's own, forward and backward; only the engine between the steps is replaced.
Not for: training, or two ranks at once outside `run_thread_ranks`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from eagle_parallel import Mesh, Plan, cp_attention
from eagle_parallel import comm as comm_module
from eagle_parallel.attention import gather_kv, ring, ulysses
from torch import Tensor

from parallel_bench.wire import LocalDistributed, LocalGroup, Meeting, MeetingWire, Replay

Result = TypeVar("Result")
_STEPS: tuple[Any, ...] = (gather_kv._GatherKV, ring._Ring, ulysses._ToHeads, ulysses._ToTokens)
_TAPE: ContextVar[list[tuple[Any, Any]]] = ContextVar("tape")
AXES = ("cp_ring", "cp_ulysses")


class _Context:
    """What a function's `ctx` offers to the attention steps."""

    def __init__(self) -> None:
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


def _noted(step: Any) -> Callable[..., Any]:
    def apply(*arguments: Any) -> Any:
        context = _Context()
        out = step.forward(context, *arguments)
        _TAPE.get().append((step, context))
        return out

    return apply


@contextmanager
def hand_driven() -> Iterator[None]:
    """While active, exchanges go through `LocalGroup`s and attention steps note themselves instead of entering autograd."""
    comm: Any = comm_module
    real = comm.dist
    if real is LocalDistributed:  # inside another one
        yield
        return
    comm.dist = LocalDistributed
    for step in _STEPS:
        step.apply = staticmethod(_noted(step))
    try:
        yield
    finally:
        comm.dist = real
        for step in _STEPS:
            del step.apply


class HandDriven:
    """One rank: its mesh, whose groups it keeps alive, and the tape of its last forward pass."""

    def __init__(self, cp_ring: int, cp_ulysses: int, rank: int, groups: dict[str, LocalGroup]) -> None:
        self.groups = groups
        references: Any = {axis: weakref.ref(group) for axis, group in groups.items()}
        self.mesh = Mesh(1, cp_ring, cp_ulysses, rank, references)
        self._tape: list[tuple[Any, Any]] = []

    @property
    def rank(self) -> int:
        return self.mesh.cp_rank

    def forward(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, **options: Any) -> Tensor:
        """`cp_attention` of this rank's rows."""
        tape: list[tuple[Any, Any]] = []
        token = _TAPE.set(tape)
        try:
            with torch.no_grad():
                out = cp_attention(q, k, v, plan, self.mesh, **options)
        finally:
            _TAPE.reset(token)
        self._tape = tape
        return out

    def backward(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv) of the last forward pass, whose tape is used up."""
        grads: list[Tensor] = [grad_out]
        with torch.no_grad():
            while self._tape:
                step, context = self._tape.pop()
                found = [grad for grad in step.backward(context, *grads) if isinstance(grad, Tensor)]
                # Between two steps q, k and v are views of one buffer, whose gradient is theirs side by side.
                grads = [torch.cat(found, dim=1)] if self._tape and len(found) > 1 else found
        dq, dk, dv = grads
        return dq, dk, dv

    def forget(self) -> None:
        """Drop what the last forward pass saved."""
        self._tape = []


def axis_rank(rank: int, cp_ulysses: int, axis: str) -> int:
    """A context-parallel rank's place in its group of an axis."""
    return rank % cp_ulysses if axis == "cp_ulysses" else rank // cp_ulysses


def run_thread_ranks(
    cp_ring: int,
    cp_ulysses: int,
    function: Callable[[HandDriven], Result],
    *,
    log: bool = False,
    seconds: float = 120.0,
) -> tuple[list[Result], list[dict[str, list[Tensor]]]]:
    """Call `function(rank)` in a thread for every rank.

    Args:
        cp_ring: ranks that gather keys or pass them round.
        cp_ulysses: ranks that exchange heads, innermost.
        function: what each rank does; all ranks issue the same exchanges.
        log: keep a copy of everything that is received.
        seconds: how long a rank waits for the others in one exchange.

    Returns:
        The results by rank, and by rank what it received along each axis (empty lists without `log`).

    Raises:
        RuntimeError: a rank raised; the message names it, the first error is its cause.
    """
    world = cp_ring * cp_ulysses
    sizes = {"cp_ring": cp_ring, "cp_ulysses": cp_ulysses}
    meetings: dict[tuple[str, int], Meeting] = {}
    ranks = []
    for rank in range(world):
        groups = {}
        for axis, size in sizes.items():
            if size > 1:
                place = axis_rank(rank, cp_ulysses, axis)
                # Ranks of one ring group have the same Ulysses place, and the other way round.
                other = rank % cp_ulysses if axis == "cp_ring" else rank // cp_ulysses
                meeting = meetings.setdefault((axis, other), Meeting(size, seconds))
                groups[axis] = LocalGroup(size, place, MeetingWire(meeting, place), [] if log else None)
        ranks.append(HandDriven(cp_ring, cp_ulysses, rank, groups))
    results: list[Any] = [None] * world
    errors: list[tuple[int, BaseException]] = []

    def work(rank: HandDriven) -> None:
        try:
            results[rank.rank] = function(rank)
        except BaseException as error:
            errors.append((rank.rank, error))
            for meeting in meetings.values():
                meeting.end()

    threads = [threading.Thread(target=work, args=(rank,), name=f"rank {rank.rank}", daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # Ranks that only waited for the one that failed come second.
        errors.sort(key=lambda found: isinstance(found[1], threading.BrokenBarrierError))
        rank, error = errors[0]
        raise RuntimeError(f"rank {rank} of {world}: {type(error).__name__}: {error}") from error
    logs = [{axis: rank.groups[axis].log or [] if axis in rank.groups else [] for axis in AXES} for rank in ranks]
    return results, logs


def alone(cp_ring: int, cp_ulysses: int, rank: int, log: dict[str, list[Tensor]]) -> HandDriven:
    """A rank that runs without the others: what it receives comes from its log, round after round."""
    sizes = {"cp_ring": cp_ring, "cp_ulysses": cp_ulysses}
    groups = {
        axis: LocalGroup(size, axis_rank(rank, cp_ulysses, axis), Replay(log[axis])) for axis, size in sizes.items() if size > 1
    }
    return HandDriven(cp_ring, cp_ulysses, rank, groups)


def shares(tensors: Sequence[Tensor], plan: Plan) -> list[list[Tensor]]:
    """For every rank its rows of some tensors in pack order [tokens, ...]."""
    indices = [plan.local_index(rank).to(tensors[0].device) for rank in range(plan.cp)]
    return [[tensor.index_select(0, index) for tensor in tensors] for index in indices]


def joined(parts: Sequence[Sequence[Tensor]], plan: Plan) -> list[Tensor]:
    """The inverse of `shares`: every rank's rows put back in pack order."""
    order = torch.cat([plan.local_index(rank) for rank in range(plan.cp)]).argsort().to(parts[0][0].device)
    return [torch.cat(list(rows)).index_select(0, order) for rows in zip(*parts, strict=True)]


def attention_of_ranks(
    tensors: Sequence[Tensor], plan: Plan, *, log: bool = False, **options: Any
) -> tuple[list[Tensor], list[dict[str, list[Tensor]]]]:
    """[out, dq, dk, dv] of a pack in pack order, computed by thread ranks; `hand_driven` must be active.

    Args:
        tensors: q, k, v and the gradient of out, [tokens, heads, head_dim] each.
        plan: the pack's plan.
        log: keep what every rank receives.
        options: of `cp_attention`.
    """
    local = shares(tensors, plan)

    def step(rank: HandDriven) -> list[Tensor]:
        q, k, v, grad_out = local[rank.rank]
        out = rank.forward(q, k, v, plan, **options)
        return [out, *rank.backward(grad_out)]

    parts, logs = run_thread_ranks(plan.cp_ring, plan.cp_ulysses, step, log=log)
    return joined(parts, plan), logs
