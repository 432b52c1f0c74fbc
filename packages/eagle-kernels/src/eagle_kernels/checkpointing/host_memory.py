"""Host memory for offloaded tensors: exact bytes, page-locked where a GPU copies from it, bounded, kept for the next step.

Memory is registered in the sizes asked for and never rounded up (torch's own pinned allocator rounds to powers of two). What is
given back is joined with its neighbours and serves later requests of any size in pieces, so the registered bytes never exceed
the largest sum in use at one time. Not for tensors that must lie in one stretch, and not a general allocator.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEFAULT_SHARE = 0.8
"""Part of the memory available at first use that all ranks of a machine together may take where no limit is given."""

_Span = tuple[int, int, int]  # segment, first byte, one past the last byte


class HostMemoryExceeded(MemoryError):
    """A tensor has to move to the host and the bound of `HostMemory` does not allow it; all numbers are bytes."""

    def __init__(self, needed: int, in_use: int, limit: int) -> None:
        super().__init__(
            f"{needed} bytes of host memory are needed for an offloaded tensor, {in_use} are in use and host_limit is {limit}. "
            "Raise host_limit if the machine has the memory, shorten the sequence, use more ranks for it or keep fewer tensors."
        )
        self.needed, self.in_use, self.limit = needed, in_use, limit

    def __reduce__(self) -> tuple[type[HostMemoryExceeded], tuple[int, int, int]]:
        return type(self), (self.needed, self.in_use, self.limit)


class Block:
    """Some host bytes, as one or more uint8 views in order. They go back to the pool when the block dies."""

    def __init__(self, pieces: tuple[Tensor, ...]) -> None:
        self.pieces = pieces

    @property
    def nbytes(self) -> int:
        """Bytes of the block, exactly those asked for."""
        return sum(piece.numel() for piece in self.pieces)


class HostMemory:
    """A bounded pool of host bytes. Blocks may be taken and dropped from any thread.

    Args:
        limit: the most bytes that may be registered; None takes `available_memory()` x `DEFAULT_SHARE` / `LOCAL_WORLD_SIZE`,
            looked up at the first request.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._segments: dict[int, Tensor] = {}
        self._free: dict[torch.device, list[_Span]] = {}
        # Blocks die in any thread and in the middle of anything (garbage collection); a deque's append needs no lock.
        self._returned: deque[tuple[torch.device, list[_Span]]] = deque()
        self._next_segment = 0
        self._in_use = 0
        self._registered = 0
        self._peak = 0

    @property
    def limit(self) -> int:
        """The bound in bytes."""
        if self._limit is None:
            self._limit = int(available_memory() * DEFAULT_SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self._limit

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the blocks that are alive."""
        with self._lock:
            self._collect()
            return self._in_use

    @property
    def bytes_registered(self) -> int:
        """Bytes mapped from the system, in use or waiting for reuse."""
        return self._registered

    @property
    def peak_bytes(self) -> int:
        """The largest `bytes_in_use` so far."""
        return self._peak

    def take(self, nbytes: int, device: torch.device) -> Block:
        """A block of exactly `nbytes` > 0 bytes for copies from and to `device`, page-locked when that is a CUDA device.

        Raises:
            HostMemoryExceeded: the bound would be passed. Nothing has changed then.
            RuntimeError: the driver does not page-lock the memory. Nothing has changed then.
        """
        with self._lock:
            self._collect()
            free = self._free.setdefault(device, [])
            chosen = _choose(free, nbytes)
            missing = nbytes - sum(stop - start for _, start, stop in chosen)
            if missing > 0 and self._registered + missing > self.limit:
                raise HostMemoryExceeded(nbytes, self._in_use, self.limit)
            fresh = self._register(missing, device) if missing > 0 else []
            for span in chosen:
                free.remove(span)
            if missing < 0:
                segment, start, stop = chosen.pop()
                chosen.append((segment, start, stop + missing))
                bisect.insort(free, (segment, stop + missing, stop))
            spans = chosen + fresh
            block = Block(tuple(self._segments[segment][start:stop] for segment, start, stop in spans))
            weakref.finalize(block, self._returned.append, (device, spans)).atexit = False
            self._in_use += nbytes
            self._peak = max(self._peak, self._in_use)
            return block

    def release(self) -> None:
        """Give every segment that no block uses back to the system."""
        with self._lock:
            self._collect()
            for free in self._free.values():
                for span in [s for s in free if s[1] == 0 and s[2] == self._segments[s[0]].numel()]:
                    free.remove(span)
                    self._registered -= self._segments.pop(span[0]).numel()

    def _register(self, nbytes: int, device: torch.device) -> list[_Span]:
        segment = self._next_segment
        self._segments[segment] = _map(nbytes, device)
        self._next_segment += 1
        self._registered += nbytes
        return [(segment, 0, nbytes)]

    def _collect(self) -> None:
        while self._returned:
            device, spans = self._returned.popleft()
            free = self._free[device]
            for segment, start, stop in spans:
                self._in_use -= stop - start
                at = bisect.bisect(free, (segment, start, stop))
                if at < len(free) and free[at][:2] == (segment, stop):
                    stop = free.pop(at)[2]
                if at > 0 and free[at - 1][0] == segment and free[at - 1][2] == start:
                    at -= 1
                    start = free.pop(at)[1]
                free.insert(at, (segment, start, stop))


def available_memory() -> int:
    """Bytes that this machine or container can still give: MemAvailable of Linux, or the control group's room if that is less.

    Raises:
        RuntimeError: the system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration) as error:
        raise RuntimeError("this system does not say how much memory is available; pass host_limit in bytes.") from error
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no control group, or its bound is "max"
        room = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        available = min(available, max(room, 0))
    return available


def _choose(free: list[_Span], nbytes: int) -> list[_Span]:
    """The smallest free span that holds `nbytes`, or, if none does, the largest ones up to `nbytes`."""
    fitting = [span for span in free if span[2] - span[1] >= nbytes]
    if fitting:
        return [min(fitting, key=lambda span: span[2] - span[1])]
    chosen, size = [], 0
    for span in sorted(free, key=lambda span: span[1] - span[2]):
        if size >= nbytes:
            break
        chosen.append(span)
        size += span[2] - span[1]
    return chosen


def _map(nbytes: int, device: torch.device) -> Tensor:
    pinned = device.type == "cuda"
    region = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Huge pages make page-locking faster. A forked loader worker must not share pages that a GPU writes to.
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK") if pinned else ("MADV_HUGEPAGE",):
        with contextlib.suppress(OSError, AttributeError):
            region.madvise(getattr(mmap, advice))
    memory = torch.frombuffer(region, dtype=torch.uint8)
    if pinned:
        code = int(_cudart().cudaHostRegister(memory.data_ptr(), nbytes, 0))
        if code != 0:
            raise RuntimeError(
                f"CUDA error {code}: {nbytes} bytes of host memory could not be page-locked. Lower host_limit, or allow more "
                "locked memory (ulimit -l)."
            )
        # The storage outlives every view of it; the region is unmapped after this call because the storage refers to it.
        weakref.finalize(memory.untyped_storage(), _unregister, memory.data_ptr(), region, device).atexit = False
    return memory


def _cudart() -> Any:
    return torch.cuda.cudart()


def _unregister(pointer: int, region: mmap.mmap, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # a copy into the region may be under way
    _cudart().cudaHostUnregister(pointer)
