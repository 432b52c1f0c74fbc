"""Time calls in turns: one run of each, again and again, so that a drift of the clocks meets all alike.

Attention of a long pack takes a second and needs few runs; a short one needs many. How many, a round before them tells.
The device's queue is not drained between runs, as in triton's do_bench: a call that launches faster than it computes, as in a
step of a training run, is timed by what the device does, and one that does not by what the host does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from parallel_bench.shared import Timing, summarise

_CACHE_BYTES = 256 * 2**20
_LEAD = 40  # flushes that keep the device busy, some 4 ms, while the host begins
Calls = Mapping[str, Callable[[], object]]


def in_turns(calls: Calls, device: torch.device, *, seconds: float = 3.0, least: int = 3, most: int = 20) -> dict[str, Timing]:
    """Median, spread and number of runs of each call, in milliseconds.

    Args:
        calls: what is timed; results are dropped.
        device: CUDA times by events, with the cache flushed before each run, or the host clock.
        seconds: about how long all of it may take after the rounds that warm up, which are not counted.
        least: runs of each call at least.
        most: runs of each call at most.
    """
    # The second round tells how long one takes: the first compiles, plans and finds memory.
    rounds = []
    for _ in range(2):
        begin = time.perf_counter()
        for call in calls.values():
            call()
        _wait(device)
        rounds.append(time.perf_counter() - begin)
    round_seconds = max(1e-9, rounds[1])
    runs = max(least, min(most, int(seconds / round_seconds)))
    flush = torch.empty(_CACHE_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)
    for _ in range(_LEAD if device.type == "cuda" else 0):
        flush.zero_()
    reads: dict[str, list[Callable[[], float]]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            flush.zero_()
            reads[name].append(_once(call, device))
    _wait(device)
    return {name: summarise([read() for read in times]) for name, times in reads.items()}


def _once(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Run a call; what is given reads its milliseconds once the device is done."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        past = (time.perf_counter() - begin) * 1e3
        return lambda: past
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return lambda: start.elapsed_time(end)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
