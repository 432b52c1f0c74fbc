"""Start the processes of `run_ranks`, wait for them within a time limit, and name the rank that failed.

A rank that fails or hangs ends the others; only processes started here are ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def run_ranks(file: str | Path, function: str, worlds: Sequence[int], *, seconds: float = 120.0) -> dict[int, list[Any]]:
    """Call `function()` of a Python file on every rank of each world size, over gloo.

    max(worlds) processes start once; for each world size in turn, ranks below it initialise torch.distributed, call the function
    and leave the group, unless the function has left it itself. Each process runs one thread.

    Args:
        file: the Python file that holds the function; it is imported in every process.
        function: its name. It takes no arguments, reads rank and world from torch.distributed, and returns something that
            torch.save can write.
        worlds: world sizes, each positive.
        seconds: limit for the whole run.

    Returns:
        For each world size the results by rank.

    Raises:
        RuntimeError: a rank failed; the message holds its number and the end of its error output.
        TimeoutError: the run took longer than `seconds`.
    """
    sizes = [int(world) for world in worlds]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"worlds must hold positive world sizes, got {worlds!r}.")
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank{rank}.log") for rank in range(max(sizes))]
        command = [sys.executable, "-m", "eagle_parallel.testing.worker", str(Path(file).resolve()), function, folder]
        command.append(",".join(map(str, sizes)))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with log.open("wb") as stream:
                    processes.append(
                        subprocess.Popen([*command, str(rank)], stdout=stream, stderr=subprocess.STDOUT, env=_environment())
                    )
            _wait(processes, logs, seconds)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return {
            world: [torch.load(Path(folder, f"{world}-{rank}.pt"), weights_only=False) for rank in range(world)]
            for world in sizes
        }


def _environment() -> dict[str, str]:
    # Two cores shared by several ranks: more threads only wait for each other.
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _wait(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                raise RuntimeError(f"rank {rank} ended with code {code}:\n{logs[rank].read_text(errors='replace')[-4000:]}")
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            raise TimeoutError(
                f"ranks {late} were still running after {seconds} s:\n{logs[late[0]].read_text(errors='replace')[-4000:]}"
            )
        time.sleep(0.02)
