"""Time calls in turns: one run of each, again and again, so that a drift of the clocks meets all alike.

Attention of a long pack takes a second and needs few runs; a short one needs many. The number of runs follows from a first run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from parallel_bench.shared import Timing, summarise

_CACHE_BYTES = 256 * 2**20
Calls = Mapping[str, Callable[[], object]]


def in_turns(calls: Calls, device: torch.device, *, seconds: float = 3.0, least: int = 3, most: int = 20) -> dict[str, Timing]:
    """Median, spread and number of runs of each call, in milliseconds.

    Args:
        calls: what is timed; results are dropped.
        device: CUDA times by events, with the cache flushed before each run, or the host clock.
        seconds: about how long all of it may take after the first round, which is not counted.
        least: runs of each call at least.
        most: runs of each call at most.
    """
    begin = time.perf_counter()
    for call in calls.values():
        call()
    _wait(device)
    round_seconds = max(1e-9, time.perf_counter() - begin)
    runs = max(least, min(most, int(seconds / round_seconds)))
    flush = torch.empty(_CACHE_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            flush.zero_()
            times[name].append(_once(call, device))
    return {name: summarise(values) for name, values in times.items()}


def _once(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
