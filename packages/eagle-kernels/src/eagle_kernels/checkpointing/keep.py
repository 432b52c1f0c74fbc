"""Keep chosen operators' outputs, so that recomputation replays them: attention's output and log-sum-exp first.

Two dispatch modes, made for the two contexts of `torch.utils.checkpoint`, share one `Recording`: the first forward notes the
outputs, the recomputation takes them in the same order and does not run the operators. Outputs live on the device under a bound
in bytes, or in host memory through the tape. They are held until the graph is freed, so several backward passes are right.
Not for operators that write to their arguments, and not for calls whose recomputation takes another path than their forward.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from eagle_kernels.checkpointing.offload import Record, Slot

ATTENTION_OPERATORS = (
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_cudnn_attention_forward",
    "aten::_efficient_attention_forward",
    "aten::_flash_attention_forward",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
)
"""Operators that return an attention output with what its backward needs; a name that this torch lacks matches nothing."""


class ReplayError(RuntimeError):
    """The recomputation of a checkpointed call does not run the kept operators of its forward, in number or order."""


@dataclass(frozen=True)
class _Entry:
    name: str
    outputs: Any  # the operator's result with Slots for its tensors; None where it is recomputed
    random_states: dict[torch.device, Tensor]  # the generators that it drew from, as it left them


class KeepBudget:
    """Device bytes that kept outputs may hold at any time, over all calls. None is no bound."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._recordings: weakref.WeakSet[Recording] = weakref.WeakSet()

    @property
    def bytes_kept(self) -> int:
        """Device bytes that recordings hold now."""
        return sum(recording.device_bytes for recording in self._recordings)

    def admits(self, nbytes: int) -> bool:
        """Whether that many bytes more stay within the bound."""
        return self.limit is None or self.bytes_kept + nbytes <= self.limit

    def watch(self, recording: Recording) -> None:
        """Count a recording's bytes for as long as it lives."""
        self._recordings.add(recording)


class Recording:
    """The kept operators of one checkpointed call, in order.

    Args:
        record: the call's place on the tape; kept tensors that go to the host travel with it.
        names: operators to keep, such as "aten::_scaled_dot_product_flash_attention".
        budget: the bound on the device.
        offload: send what the budget refuses to the host; otherwise it is recomputed.
        restore_random_state: after a replay, put the generators where the operator would have left them.
    """

    def __init__(
        self, record: Record, names: frozenset[str], budget: KeepBudget, *, offload: bool, restore_random_state: bool
    ) -> None:
        self.device_bytes = 0
        self.replaying = False
        self._record = record
        self._names = names
        self._budget = budget
        self._offload = offload
        self._restore_random_state = restore_random_state
        self._entries: list[_Entry] = []
        budget.watch(self)

    def contexts(self) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        """The modes for the first forward and for every recomputation."""
        return _RecordingMode(self), _ReplayingMode(self)

    def keeps(self, operator: Any) -> bool:
        """Whether outputs of this operator are to be kept.

        Raises:
            ValueError: a kept operator writes to its arguments or returns views of them.
        """
        name = operator.name()
        if name.partition(".")[0] not in self._names and name not in self._names:
            return False
        schema = getattr(operator, "_schema", None)
        if schema is not None and any(item.alias_info is not None for item in [*schema.arguments, *schema.returns]):
            raise ValueError(f"keep_operators: {name} writes to its arguments or returns views of them and cannot be replayed.")
        return True

    def run(self, operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a kept operator and note its result."""
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        before = _random_states(devices) if self._restore_random_state else {}
        result = operator(*args, **kwargs)
        after = _random_states(devices) if self._restore_random_state else {}
        drawn = {device: state for device, state in after.items() if not torch.equal(state, before[device])}
        self._entries.append(_Entry(operator.name(), self._hold(result), drawn))
        return result

    def replay(self, position: int, operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of the kept operator at this position of the call.

        Raises:
            ReplayError: the first forward ran no operator, or another one, at this position.
        """
        name = operator.name()
        if position >= len(self._entries):
            raise ReplayError(f"recomputation runs {name} as kept operator {position + 1}; {_mismatch(len(self._entries))}")
        entry = self._entries[position]
        if entry.name != name:
            raise ReplayError(f"recomputation runs {name} where the forward ran {entry.name}; {_mismatch(len(self._entries))}")
        if entry.outputs is None:
            return operator(*args, **kwargs)
        for device, state in entry.random_states.items():
            _set_generator_state(device, state)
        return tree_map_only(Slot, Slot.value, entry.outputs)

    def check_complete(self, replayed: int) -> None:
        """ReplayError unless a recomputation that ran to its end replayed every kept operator."""
        if replayed != len(self._entries):
            raise ReplayError(f"recomputation ran {replayed} kept operators; {_mismatch(len(self._entries))}")

    def _hold(self, result: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        nbytes = sum(storages.values())
        on_device = self._budget.admits(nbytes)
        if on_device:
            self.device_bytes += nbytes
        elif not self._offload:
            return None
        return tree_map_only(Tensor, lambda tensor: self._record.stow(tensor, may_leave=not on_device), result)


class _RecordingMode(TorchDispatchMode):
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled code inside the call stays compiled; its operators are not seen

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        # A backward pass inside the forward replays, under this mode, what has been noted already.
        if self._recording.replaying or not self._recording.keeps(func):
            return func(*args, **(kwargs or {}))
        return self._recording.run(func, args, kwargs or {})


class _ReplayingMode(TorchDispatchMode):
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording
        self._position = 0

    def __enter__(self) -> _ReplayingMode:
        self._position = 0
        self._recording.replaying = True
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self._recording.replaying = False
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None:  # torch ends a recomputation early by an exception
            self._recording.check_complete(self._position)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if not self._recording.keeps(func):
            return func(*args, **(kwargs or {}))
        self._position += 1
        return self._recording.replay(self._position - 1, func, args, kwargs or {})


def _random_states(devices: set[torch.device]) -> dict[torch.device, Tensor]:
    return {device: _generator_state(device) for device in {torch.device("cpu"), *devices} if device.type != "meta"}


def _generator_state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _mismatch(count: int) -> str:
    return (
        f"the forward ran {count}. The checkpointed function must take the same path both times: remove what depends on changing "
        "state from it, or leave the operator out of keep_attention and keep_operators."
    )
