"""The tape of checkpointed calls: what each of them has to hold for its recomputation, on the device or in host memory.

A call's tensors leave the device while the NEXT call runs, so the last call's stay where they are needed at once, in any model
and without being told which layer is last. In the backward pass the tensors of call i - 1 come back while call i is recomputed.
Copies run in order on one side stream per device. A source is held until the computation's stream has waited for its copy, and
only then given up, so device memory is reused in the stream's order and does not depend on how far ahead the host runs.
Values are kept to the bit. Not for tensors that something outside the tape keeps alive: those would be copied and not freed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from eagle_kernels.checkpointing.host_memory import Block, HostMemory


class _Lane:
    """Copies between one device and its host memory, beside the computation on CUDA, at once on any other device."""

    def __init__(self, device: torch.device, memory: HostMemory) -> None:
        self.device = device
        self._memory = memory
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._held: deque[tuple[torch.cuda.Event | None, Tensor, weakref.ref[Slot] | None]] = deque()

    def store(self, slot: Slot, tensor: Tensor) -> Block:
        """Start to copy `tensor`, a slot's own, into host memory and hold it until `settle`."""
        like = torch.empty_like(tensor, device="meta")  # the dense layout nearest to the tensor's own
        block = self._memory.take(tensor.numel() * tensor.element_size(), self.device)
        source = tensor if tensor.stride() == like.stride() else torch.empty_like(tensor).copy_(tensor)
        event = self._copy(block, source, to_host=True)
        self._held.append((event, tensor, weakref.ref(slot)))
        if source is not tensor:
            self._held.append((event, source, None))
        return block

    def load(self, block: Block, like: Tensor) -> tuple[torch.cuda.Event | None, Tensor]:
        """Start to copy a block into a new tensor; the event says when its values are there."""
        target = torch.empty_like(like, device=self.device)
        return self._copy(block, target, to_host=False), target

    def wait(self, event: torch.cuda.Event | None) -> None:
        """Let the computation's stream wait; the host does not."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def hold(self, event: torch.cuda.Event | None, tensor: Tensor) -> None:
        """Keep a tensor that a copy still touches until `settle`. Called from destructors: it only appends."""
        self._held.append((event, tensor, None))

    def settle(self) -> None:
        """Give up every held tensor, the computation's stream waiting for its copy first."""
        while self._held:
            event, tensor, owner = self._held.popleft()
            self.wait(event)
            slot = owner() if owner is not None else None
            if slot is not None:
                slot.check_unchanged(tensor)

    def _copy(self, block: Block, tensor: Tensor, *, to_host: bool) -> torch.cuda.Event | None:
        flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        if self._stream is not None:
            # For a source its values, for a target its memory: both are ready where the computation stands now.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            for piece, part in zip(block.pieces, flat.split([p.numel() for p in block.pieces]), strict=True):
                target, source = (piece, part) if to_host else (part, piece)
                target.copy_(source, non_blocking=True)
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        return event


class Slot:
    """One tensor that a call holds. On the device until `leave`, which does nothing for a slot without a lane."""

    def __init__(self, tensor: Tensor, lane: _Lane | None) -> None:
        self._ahead: tuple[torch.cuda.Event | None, Tensor] | None = None
        self._block: Block | None = None
        self._lane = lane
        self._tensor: Tensor | None = _alias(tensor)
        self._like = self._tensor
        self._version = self._tensor._version
        self._changed = False
        self._storage = StorageWeakRef(tensor.untyped_storage()) if lane else None  # its address is not used anew meanwhile

    def leave(self) -> None:
        """Start the way to the host.

        Raises:
            HostMemoryExceeded: the bound of the host memory would be passed; the tensor stays on the device.
        """
        if self._tensor is None or self._lane is None:
            return
        self.check_unchanged(self._tensor)
        self._block = self._lane.store(self, self._tensor)
        self._like = torch.empty_like(self._tensor, device="meta")
        self._tensor = None

    def fetch_ahead(self) -> None:
        """Start the way back, if the tensor has left and is not on its way already."""
        if self._block is not None and self._lane is not None and self._ahead is None:
            self._ahead = self._lane.load(self._block, self._like)

    def value(self) -> Tensor:
        """The tensor, detached and new to autograd. Callable as often as the graph lives.

        Raises:
            RuntimeError: it was changed in place before the slot had its own copy.
        """
        if self._tensor is not None:
            self.check_unchanged(self._tensor)
        if self._changed:
            raise RuntimeError(
                f"a tensor of shape {tuple(self._like.shape)} that checkpointing holds for the backward pass was changed in "
                "place. Let the operation that writes to the call's input or to the kept output make a new tensor."
            )
        if self._tensor is not None:
            return _alias(self._tensor)
        self.fetch_ahead()
        assert self._ahead is not None
        assert self._lane is not None
        (event, tensor), self._ahead = self._ahead, None
        self._lane.wait(event)
        return tensor

    def check_unchanged(self, tensor: Tensor) -> None:
        """Note whether the slot's tensor has been written to since the slot took it."""
        self._changed |= tensor._version != self._version

    def __del__(self) -> None:
        if self._ahead is not None and self._lane is not None:  # fetched and never used: the copy may still be under way
            self._lane.hold(*self._ahead)


class Record:
    """What one checkpointed call holds. It lives as long as the call's autograd graph."""

    def __init__(self, tape: Tape, previous: Record | None) -> None:
        self._tape = tape
        self._previous = weakref.ref(previous) if previous is not None else None
        self._slots: list[Slot] = []

    def stow(self, tensor: Tensor, *, may_leave: bool) -> Slot:
        """Hold a tensor. It may leave the device only if it is a plain floating tensor of at least the tape's smallest size.

        A leaf that requires a gradient stays too: autograd keeps it alive until the gradient is there.
        """
        leaves = (
            may_leave
            and type(tensor) is Tensor
            and tensor.layout is torch.strided
            and tensor.is_floating_point()
            and not (tensor.is_leaf and tensor.requires_grad)
            and tensor.numel() * tensor.element_size() >= max(self._tape.smallest, 1)
        )
        slot = self._tape.slot(tensor) if leaves else Slot(tensor, None)
        self._slots.append(slot)
        return slot

    def leave(self) -> None:
        """Send to the host what may leave."""
        for slot in self._slots:
            slot.leave()

    def fetch_ahead(self) -> None:
        """Start to bring back what has left."""
        for slot in self._slots:
            slot.fetch_ahead()

    def recall(self, slot: Slot) -> Tensor:
        """A slot's value; the tensors of the call before this one start on their way back."""
        value = slot.value()
        previous = self._previous() if self._previous is not None else None
        if previous is not None:
            previous.fetch_ahead()
        return value


class Tape:
    """The records in the order of the calls, each knowing the one before it.

    Args:
        memory: where the tensors go.
        smallest: bytes below which a tensor stays on its device.
    """

    def __init__(self, memory: HostMemory, smallest: int) -> None:
        self.smallest = smallest
        self._memory = memory
        self._lanes: dict[torch.device, _Lane] = {}
        self._last: weakref.ref[Record] | None = None
        self._known: weakref.WeakValueDictionary[tuple, Slot] = weakref.WeakValueDictionary()

    def open(self) -> Record:
        """A record for a call that starts now. The tensors of the call before it start to leave.

        Raises:
            HostMemoryExceeded: they find no room.
        """
        previous = self._last() if self._last is not None else None
        if previous is not None:
            previous.leave()
        record = Record(self, previous)
        self._last = weakref.ref(record)
        return record

    def settle(self) -> None:
        """Give up the device memory of everything that has left so far."""
        for lane in self._lanes.values():
            lane.settle()

    def slot(self, tensor: Tensor) -> Slot:
        """The slot of a tensor that may leave; one slot for equal views of one storage, whoever holds them."""
        storage = StorageWeakRef(tensor.untyped_storage()).cdata
        view = tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        slot = self._known.get((storage, *view))
        if slot is None:
            lane = self._lanes.get(tensor.device)
            if lane is None:
                lane = self._lanes[tensor.device] = _Lane(tensor.device, self._memory)
            slot = self._known[(storage, *view)] = Slot(tensor, lane)
        return slot


def _alias(tensor: Tensor) -> Tensor:
    """The same memory without history. It shares the version counter, also inside a dispatch mode, so that writes are noticed."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()
