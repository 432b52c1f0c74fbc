"""Starts the ranks of a context-parallel run on this machine, watches them, and says which one failed and why.

Only where nobody else has started them: under torchrun this process is already a rank. Rank 0 writes to this process's terminal.
Signals are passed on to every rank; ranks end when this process does. What a rank does is `eagle_train.rank`. No torch here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from eagle_train import errors
from eagle_train.errors import Interrupted, RankError
from eagle_train.recipe import Recipe

Process = subprocess.Popen[bytes]

_GRACE = 10.0
"""Seconds that the other ranks get to end by themselves once one has failed, or rank 0 has ended."""

_NO_FAILURE = ("done", "finished", "Interrupted", "KeyboardInterrupt")


def starts_ranks(recipe: Recipe) -> bool:
    """Whether this process must start the recipe's ranks, because it is none itself (torchrun sets WORLD_SIZE)."""
    return recipe.parallel.cp > 1 and os.environ.get("WORLD_SIZE", "1") in ("", "1")


def launch(recipe: Recipe, *, fresh: bool = False) -> bool:
    """Do what is left of the run with `parallel.cp` processes; False where it was finished already.

    Raises what rank 0 would raise in this process (RunError, Interrupted, KeyboardInterrupt), and RankError, with the rank and
    what it last said, for a rank that crashed or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="eagle-train-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "run.json").write_text(json.dumps({"recipe": recipe.model_dump_json(), "fresh": fresh}), encoding="utf-8")
        ranks: list[Process] = []
        stack.callback(_end, ranks)
        stack.enter_context(_signals_passed_to(ranks))
        for rank in range(recipe.parallel.cp):
            ranks.append(_start(folder, rank, recipe.parallel.cp))
        _watch(ranks)
        return result(folder, [process.poll() for process in ranks])


def _start(folder: Path, rank: int, world: int) -> Process:
    environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    environment |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    # All ranks are on this machine; gloo would look up its host name, which a machine without a network may not resolve.
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    log = None if rank == 0 else (folder / f"rank-{rank}.log").open("wb")
    try:
        # A session of its own: Ctrl-C reaches a rank once, through us. The pipe's end tells it that we have gone.
        return subprocess.Popen(
            [sys.executable, "-m", "eagle_train.rank", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    finally:
        if log is not None:
            log.close()


def _watch(ranks: Sequence[Process]) -> None:
    """Return once all have ended, or when the grace has passed since one failed or rank 0 ended."""
    deadline = None
    while any(process.poll() is None for process in ranks):
        codes = [process.poll() for process in ranks]
        if deadline is None and (codes[0] is not None or any(code not in (None, 0, 130) for code in codes)):
            deadline = time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.02)


def result(folder: Path, codes: Sequence[int | None]) -> bool:
    """What the outcomes in `folder` and the exit codes (None: still running) of the ranks come to, as `launch` says it.

    The first rank to fail decides: others then fail for want of it.
    """
    told: dict[int, dict[str, Any]] = {}
    for rank in range(len(codes)):
        path = folder / f"outcome-{rank}.json"
        if path.is_file():
            told[rank] = json.loads(path.read_text(encoding="utf-8"))
    if any(outcome["kind"] == "KeyboardInterrupt" for outcome in told.values()):
        raise KeyboardInterrupt
    for rank, code in enumerate(codes):
        if rank not in told and code not in (None, 0):
            raise _killed(folder, rank, code or 0, len(codes))
    failed = [rank for rank, outcome in told.items() if outcome["kind"] not in _NO_FAILURE]
    if failed:
        rank = min(failed, key=lambda rank: told[rank]["time"])
        kind, message = getattr(errors, told[rank]["kind"], None), told[rank]["message"]
        if kind is None:
            raise RankError(f"rank {rank} of {len(codes)} failed:\n{message}")
        raise kind(message if rank == 0 else f"rank {rank} of {len(codes)}: {message}")
    if 0 not in told:
        raise RankError(f"rank 0 of {len(codes)} ended without a result; run the same command again")
    if told[0]["kind"] == "Interrupted":
        raise Interrupted
    return told[0]["kind"] == "done"


def _killed(folder: Path, rank: int, code: int, world: int) -> BaseException:
    if code in (-signal.SIGINT, -signal.SIGTERM):
        return KeyboardInterrupt()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    why = "; the machine may lack the memory for all ranks" if code == -signal.SIGKILL else ""
    words = _last_words(folder, rank)
    return RankError(f"rank {rank} of {world} {how}{why}. The same command goes on from the last checkpoint.{words}")


def _last_words(folder: Path, rank: int) -> str:
    log = folder / f"rank-{rank}.log"
    text = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:] if log.is_file() else ""
    return f" It last said:\n{text}" if text else ""


@contextmanager
def _signals_passed_to(ranks: Sequence[Process]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone.
        return

    def forward(number: int, frame: Any) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _end(ranks: Sequence[Process]) -> None:
    for process in ranks:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


__all__ = ["launch", "result", "starts_ranks"]
