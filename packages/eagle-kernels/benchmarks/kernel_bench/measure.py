"""Time, peak memory and error of a call, and the ceiling of the machine that runs it.

Promises: times come from `triton.testing.do_bench` on an accelerator (device events, cache flushed before each run) and from
the host clock on a CPU; implementations take turns, so that a drift of the clocks meets all of them alike.
Not for: deciding what is right or fast enough (`problem.py`, `targets.py`).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

GIB = 2**30
SPREAD = "interquartile range over median"


@dataclass(frozen=True)
class Budget:
    """How long an implementation is timed: `rounds` turns of `rep_ms` after `warmup_ms` each; on a CPU `cpu_runs` a turn."""

    rounds: int = 3
    warmup_ms: int = 25
    rep_ms: int = 100
    cpu_runs: int = 3


@dataclass(frozen=True)
class Timing:
    """Median of `runs` times in milliseconds, and their spread: interquartile range over median."""

    median_ms: float
    spread: float
    runs: int


def quantile(values: Sequence[float], share: float) -> float:
    """The `share` quantile by linear interpolation between the sorted values; ValueError for no values."""
    if not values:
        raise ValueError("quantile: values is empty; time the call at least once.")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(times_ms: Sequence[float]) -> Timing:
    """Median, relative interquartile range and number of some times."""
    median = quantile(times_ms, 0.5)
    return Timing(median, (quantile(times_ms, 0.75) - quantile(times_ms, 0.25)) / median, len(times_ms))


def one_turn(call: Callable[[], object], device: torch.device, budget: Budget) -> list[float]:
    """Milliseconds of every run of one turn."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return cast(list[float], do_bench(call, warmup=budget.warmup_ms, rep=budget.rep_ms, return_mode="all"))
    times = []
    call()
    for _ in range(budget.cpu_runs):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def take_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, budget: Budget
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Time every call, each once a round. A call that raises leaves the race and its error is returned beside the timings."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, Exception] = {}
    for _ in range(budget.rounds):
        for name, call in calls.items():
            if name not in errors:
                try:
                    times[name] += one_turn(call, device, budget)
                except Exception as error:
                    errors[name] = error
    return {name: summarise(values) for name, values in times.items() if name not in errors}, errors


def peak_gib(call: Callable[[], object], device: torch.device) -> float | None:
    """GiB that one run needs beyond what is allocated before it, its results included; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / GIB


def relative_error(result: Tensor, truth: Tensor, piece: int = 1 << 26) -> float:
    """Norm of (result - truth) over the norm of truth, in float64, a piece at a time; infinite when result has a NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if result.shape != truth.shape:
        raise ValueError(f"relative_error: result has shape {list(result.shape)} but truth has {list(truth.shape)}.")
    off = torch.zeros((), dtype=torch.float64, device=truth.device)
    size = torch.zeros_like(off)
    for ours, right in zip(result.reshape(-1).split(piece), truth.reshape(-1).split(piece), strict=True):
        right = right.double()
        off += (ours.double() - right).square().sum()
        size += right.square().sum()
    error = (off / size).sqrt().item() if size.item() else off.sqrt().item()
    return math.inf if math.isnan(error) else error


def copy_rate(device: torch.device, quick: bool) -> float:
    """TB/s of a device-to-device copy, bytes read plus bytes written: the ceiling of every element-wise operator."""
    source = torch.randn(1 << (20 if quick else 30), device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    timing = summarise(one_turn(lambda: target.copy_(source), device, Budget(rep_ms=200)))
    return 2 * source.numel() * source.element_size() / timing.median_ms / 1e9


def free_memory(device: torch.device) -> None:
    """Give cached blocks back, so that the next case starts from an empty allocator."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
