"""`run_ranks`: one call that runs a function of a test file on gloo worlds of several sizes, in processes that stay alive.

All calls of one Python process share one `Pool`, ended when that process ends; this is the only state kept here.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from eagle_parallel.testing.pool import Pool


def run_ranks(
    file: str | Path,
    function: str,
    worlds: Sequence[int],
    *,
    arguments: Sequence[Any] = (),
    seconds: float = 120.0,
    fresh: bool = False,
) -> dict[int, list[Any]]:
    """Call `function(*arguments)` of a Python file on every rank of each world size in turn, over gloo, one thread a rank.

    Args:
        file: the Python file that holds the function; it is imported once for all ranks, never pickled.
        function: its name. It reads rank and world from torch.distributed and returns something picklable that this process
            can load: numbers, strings, containers, tensors, classes of installed modules.
        worlds: world sizes, each positive.
        arguments: the same for every rank, picklable.
        seconds: limit for the whole run; importing the file is not counted.
        fresh: take new processes, and let them end after the run, which must leave them exit code 0: for code that keeps state
            for the life of a process (DeepSpeed does).

    Returns:
        For each world size the results by rank.

    Raises:
        RuntimeError: a rank raised, died, or (fresh) did not end well; the message names it.
        TimeoutError: the run took longer than `seconds`; the message names the rank that hangs.
        ValueError: worlds is empty or holds a size below 1.
    """
    sizes = [int(world) for world in worlds]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"worlds must hold positive world sizes, got {worlds!r}.")
    pool = _session_pool()
    if fresh:
        pool.drop()
    deadline = None
    results: dict[int, list[Any]] = {}
    for world in sizes:
        left = seconds if deadline is None else max(0.1, deadline - time.monotonic())
        results[world] = pool.run(file, function, world, arguments, seconds=left)
        deadline = deadline or time.monotonic() + seconds
    if fresh:
        pool.retire()
    return results


@cache
def _session_pool() -> Pool:
    pool = Pool()
    atexit.register(pool.close)
    return pool
