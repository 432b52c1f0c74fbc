"""Checkpointing that offloads inputs and keeps dear outputs, as a drop-in for `torch.utils.checkpoint.checkpoint`.

`Checkpointer` calls torch's own non-reentrant checkpoint, with hooks round it and contexts inside it, and changes no gradient by
a bit. So DDP, FSDP2, DeepSpeed, early stop, autocast and random state are torch's business. Eager only: under torch.compile a
checkpointed call is a graph break and runs as written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from eagle_kernels.checkpointing.host_memory import HostMemory
from eagle_kernels.checkpointing.keep import ATTENTION_OPERATORS, KeepBudget, Recording
from eagle_kernels.checkpointing.offload import Record, Slot, Tape


@dataclass(frozen=True)
class CheckpointPolicy:
    """What happens to the tensors that checkpointed calls hold. The default is plain checkpointing.

    Attributes:
        offload_inputs: positional tensor arguments go to host memory. The last call's stay: they are needed at once.
        keep_attention: outputs of torch's and flash-attn's attention operators are kept and not computed again.
        keep_operators: further operators to keep, by name, such as "aten::mm" or "my_library::my_attention".
        keep_budget: the most device bytes that kept outputs may hold at one time; None is no bound, 0 keeps none there.
        offload_kept: outputs beyond keep_budget go to host memory; False recomputes those operators.
        host_limit: the most host bytes; None takes a share of the available memory, see `HostMemory`.
        smallest: tensors of fewer bytes stay on the device.

    Raises:
        ValueError: a number is negative, or an option could have no effect.
    """

    offload_inputs: bool = False
    keep_attention: bool = False
    keep_operators: tuple[str, ...] = ()
    keep_budget: int | None = None
    offload_kept: bool = False
    host_limit: int | None = None
    smallest: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("keep_budget", "host_limit", "smallest"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"CheckpointPolicy: {name} is {value}; give a number of bytes of at least 0.")
        if isinstance(self.keep_operators, str) or not all("::" in name for name in self.keep_operators):
            raise ValueError(
                f"CheckpointPolicy: keep_operators is {self.keep_operators!r}; give a tuple of names like 'aten::mm'."
            )
        keeps = self.keep_attention or bool(self.keep_operators)
        if not keeps and (self.keep_budget is not None or self.offload_kept):
            raise ValueError("CheckpointPolicy: keep_budget and offload_kept need keep_attention or keep_operators.")
        if self.offload_kept and self.keep_budget is None:
            raise ValueError(
                "CheckpointPolicy: offload_kept needs a keep_budget in bytes; 0 sends every kept output to the host."
            )
        if self.host_limit is not None and not (self.offload_inputs or self.offload_kept):
            raise ValueError("CheckpointPolicy: host_limit needs offload_inputs or offload_kept.")

    @property
    def kept_names(self) -> frozenset[str]:
        """Names of all operators to keep."""
        return frozenset((ATTENTION_OPERATORS if self.keep_attention else ()) + tuple(self.keep_operators))


class Checkpointer:
    """Checkpointed calls under one policy, with one host memory. A copy (deepcopy, pickle) has the policy and starts empty.

    Args:
        policy: what to offload and what to keep.

    Attributes:
        policy: the policy.
        memory: the host memory; `memory.bytes_in_use`, `memory.peak_bytes`, `memory.bytes_registered` count its bytes.
    """

    def __init__(self, policy: CheckpointPolicy) -> None:
        if not isinstance(policy, CheckpointPolicy):
            raise TypeError(f"Checkpointer: policy must be a CheckpointPolicy, got {type(policy).__name__}.")
        self.policy = policy
        self.memory = HostMemory(policy.host_limit)
        self._budget = KeepBudget(policy.keep_budget)
        self._tape = Tape(self.memory, policy.smallest)
        self._names = policy.kept_names
        self._running = threading.local()

    @property
    def bytes_kept(self) -> int:
        """Device bytes held by kept outputs now."""
        return self._budget.bytes_kept

    def __call__(
        self,
        function: Callable[..., Any],
        *args: Any,
        use_reentrant: bool | None = False,
        preserve_rng_state: bool = True,
        **kwargs: Any,
    ) -> Any:
        """`function(*args, **kwargs)` now, and again in the backward pass, as `torch.utils.checkpoint.checkpoint` does it.

        Without gradients, and inside another call of this checkpointer, this is torch's checkpoint and nothing more.

        Args:
            function: the call; it must compute the same both times.
            *args: its positional arguments; only these can be offloaded.
            use_reentrant: False or None; accepted so that callers of torch's function need no change.
            preserve_rng_state: recompute with the random state of the forward.
            **kwargs: options of torch's function (determinism_check, early_stop, context_fn, debug), else `function`'s own.

        Raises:
            HostMemoryExceeded: the inputs of the call before this one find no room in host memory.
            ReplayError: in the backward pass, if the kept operators differ from those of the forward.
            ValueError: reentrant checkpointing is asked for, or a context_fn together with kept operators.
        """
        if use_reentrant:
            raise ValueError("Checkpointer: use_reentrant=True is not supported; leave it out or pass False.")
        run = _outside_graphs(Checkpointer._run) if torch.compiler.is_compiling() else Checkpointer._run
        return run(self, function, args, preserve_rng_state, kwargs)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], preserve_rng_state: bool, kwargs: dict[str, Any]) -> Any:
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": preserve_rng_state}
        if self._names and "context_fn" in kwargs:
            raise ValueError("Checkpointer: context_fn excludes keep_attention and keep_operators; leave one of them out.")
        if not torch.is_grad_enabled() or getattr(self._running, "inside", False):
            return checkpoint(function, *args, **options, **kwargs)
        try:
            record = self._tape.open()
            if self._names:
                recording = Recording(
                    record,
                    self._names,
                    self._budget,
                    offload=self.policy.offload_kept,
                    restore_random_state=preserve_rng_state,
                )
                options["context_fn"] = recording.contexts
            with saved_tensors_hooks(self._packer(record), _unpack):
                return checkpoint(self._marked(function), *args, **options, **kwargs)
        finally:
            self._tape.settle()

    def __reduce__(self) -> tuple[type[Checkpointer], tuple[CheckpointPolicy]]:
        return type(self), (self.policy,)

    def _packer(self, record: Record) -> Callable[[Tensor], tuple[Record, Slot]]:
        return lambda tensor: (record, record.stow(tensor, may_leave=self.policy.offload_inputs))

    def _marked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with checkpointed calls inside it left to its own checkpoint, in the forward and when recomputed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            before, self._running.inside = getattr(self._running, "inside", False), True
            try:
                return function(*args, **kwargs)
            finally:
                self._running.inside = before

        return run


def _outside_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind a graph break. Made on demand: torch.compiler.disable loads the compiler, which takes seconds."""
    return torch.compiler.disable(function, reason="activation checkpointing with offload runs eagerly")


def _unpack(held: tuple[Record, Slot]) -> Tensor:
    record, slot = held
    return record.recall(slot)
