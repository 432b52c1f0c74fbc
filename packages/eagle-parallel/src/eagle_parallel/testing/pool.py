"""Gloo processes that stay alive between tests: a function of an ordinary file runs on every rank of a world.

Ranks are forked on demand from one template process, which imports torch and each file once, and are reused for every later job
and world size. A rank that raises, dies or hangs is named, ends the others, and the next job gets new ones. Linux only; not a
launcher for training.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from eagle_parallel.testing.worker import PACKET

_IMPORT_SECONDS = 300.0
_END_SECONDS = 20.0
# Two cores shared by several ranks: more threads only wait for each other. Gloo would look up the host name, which a machine
# without a network may not resolve.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


@dataclass
class _Worker:
    process: int
    connection: Connection
    log: Path
    gone: bool = False

    def told_since(self, offset: int) -> str:
        with self.log.open("rb") as stream:
            stream.seek(offset)
            return stream.read().decode(errors="replace")[-4000:]


class Pool:
    """A context manager; `close` ends every process it started."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="eagle_parallel_ranks_")
        self._channel, inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = f"from eagle_parallel.testing.worker import main; main({inherited.fileno()})"
        environment = {**_LOOPBACK, **os.environ, **_ENVIRONMENT}
        self._template = subprocess.Popen([sys.executable, "-c", start], pass_fds=[inherited.fileno()], env=environment)
        inherited.close()
        self._workers: dict[int, _Worker] = {}
        self._imported: set[str] = set()
        self._jobs = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the live ranks, by rank."""
        return tuple(self._workers[rank].process for rank in sorted(self._workers))

    def run(
        self, file: str | Path, function: str, world: int, arguments: Sequence[Any] = (), *, seconds: float = 120.0
    ) -> list[Any]:
        """Call `function(*arguments)` of a Python file on every rank of a new gloo world; results by rank.

        Args:
            file: the Python file that holds the function; the template imports it once.
            function: its name. It reads rank and world from torch.distributed; the group is left for it when it returns.
            world: number of ranks, positive.
            arguments: the same for every rank, picklable.
            seconds: limit from the start of the job to the last result.

        Raises:
            RuntimeError: the file cannot be imported, or a rank raised or died; the message holds its number, the traceback or
                exit code, and what it printed.
            TimeoutError: the job took longer than `seconds`; the message says where each late rank was.
        """
        if world < 1:
            raise ValueError(f"world must be a positive number of ranks, got {world}.")
        path = str(Path(file).resolve())
        self._import(path)
        for rank in range(world):
            if rank not in self._workers:
                self._workers[rank] = self._fork(rank)
        team = {rank: self._workers[rank] for rank in range(world)}
        offsets = {rank: worker.log.stat().st_size if worker.log.exists() else 0 for rank, worker in team.items()}
        self._jobs += 1
        store = Path(self._folder.name, f"store-{self._jobs}").resolve().as_uri()
        try:
            for rank, worker in team.items():
                # The ranks wait longer than this process: it is the one that knows who is late.
                job = (path, function, tuple(arguments), rank, world, store, seconds + 60.0)
                with suppress(BrokenPipeError):  # it died since its last job, which is noticed below
                    worker.connection.send_bytes(pickle.dumps(job))
            return self._collect(team, offsets, seconds)
        except BaseException:
            self.drop()
            raise

    def retire(self) -> None:
        """Let the interpreter of every rank end, which takes a second; RuntimeError names a rank that ends with an exit code."""
        try:
            for worker in self._workers.values():
                worker.connection.send_bytes(pickle.dumps(None))
            for rank, worker in self._workers.items():
                code = self._reap(worker)
                if code != 0:
                    fate = "did not end" if code is None else f"ended with {_shown(code)} after its work"
                    raise RuntimeError(f"rank {rank} {fate}:\n{worker.told_since(0)}")
                worker.connection.close()
            self._workers.clear()
        except BaseException:
            self.drop()
            raise

    def close(self) -> None:
        """End the ranks and the template. Harmless when repeated."""
        try:
            self.drop()
        finally:
            self._channel.close()
            try:
                self._template.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._template.kill()
                self._template.wait()
            self._folder.cleanup()

    def _import(self, path: str) -> None:
        if path in self._imported:
            return
        # Ranks that live already have not got this import; new forks have, and cost less than importing in each.
        self.drop()
        problem = self._ask("import", path)
        if problem is not None:
            raise RuntimeError(f"{path} cannot be imported by the ranks:\n{problem}")
        self._imported.add(path)

    def _fork(self, rank: int) -> _Worker:
        ours, theirs = socket.socketpair()
        log = Path(self._folder.name, f"rank{rank}-{time.monotonic_ns()}.log")
        with theirs:
            process = self._ask("fork", str(log), handles=[theirs.fileno()])
        return _Worker(process, Connection(ours.detach()), log)

    def _ask(self, *command: Any, handles: Sequence[int] = ()) -> Any:
        try:
            self._channel.settimeout(_IMPORT_SECONDS)
            socket.send_fds(self._channel, [pickle.dumps(command)], list(handles))
            packet = self._channel.recv(PACKET)
        except OSError:
            packet = b""
        if not packet:
            raise RuntimeError(
                f"the template process of the ranks is gone or stuck (asked to {command[0]}); see its output above."
            )
        return pickle.loads(packet)

    def _collect(self, team: Mapping[int, _Worker], offsets: Mapping[int, int], seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        results: dict[int, Any] = {}
        while len(results) < len(team):
            pending = {worker.connection: rank for rank, worker in team.items() if rank not in results}
            ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(_late(team, [*pending.values()], offsets, seconds))
            failures = []
            for connection in ready:
                rank = pending[connection]  # pyright: ignore[reportArgumentType]
                kind, when, value = _received(team[rank].connection)
                if kind == "result":
                    results[rank] = value
                else:
                    failures.append((kind != "died", when, rank, value))
            if failures:
                raise RuntimeError(self._first_failure(team, results, failures, offsets))
        return [results[rank] for rank in range(len(team))]

    def _first_failure(
        self, team: Mapping[int, _Worker], results: Mapping[int, Any], failures: list[Any], offsets: Mapping[int, int]
    ) -> str:
        """The failure to report: a death before an exception, then the earliest, because the others may only follow from it."""
        known = {*results, *(rank for _, _, rank, _ in failures)}
        others = {worker.connection: rank for rank, worker in team.items() if rank not in known}
        for connection in wait(list(others), 0.3):
            rank = others[connection]  # pyright: ignore[reportArgumentType]
            kind, when, value = _received(team[rank].connection)
            if kind != "result":
                failures.append((kind != "died", when, rank, value))
        raised, _, rank, value = min(failures)
        told = team[rank].told_since(offsets[rank])
        if raised:
            return f"rank {rank} of {len(team)} raised:\n{value}{told}"
        code = self._reap(team[rank])
        return f"rank {rank} of {len(team)} died with {_shown(code)}:\n{told}"

    def _reap(self, worker: _Worker) -> int | None:
        code = self._ask("reap", worker.process, _END_SECONDS)
        worker.gone = code is not None
        return code

    def drop(self) -> None:
        """End every rank at once; the next job starts with new ones. They hold nothing between jobs."""
        workers = list(self._workers.values())
        self._workers.clear()
        for worker in workers:
            worker.connection.close()
            # A process number is used only until the template has reaped it.
            if not worker.gone and self._template.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process, signal.SIGKILL)
                self._reap(worker)


def _received(connection: Connection) -> tuple[str, float, Any]:
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionError):
        return "died", time.monotonic(), ""


def _shown(code: int | None) -> str:
    if code is None:
        return "no exit code yet"
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _late(team: Mapping[int, _Worker], late: Sequence[int], offsets: Mapping[int, int], seconds: float) -> str:
    """Which ranks are late and where: those inside a collective wait, the others are what they wait for."""
    for rank in late:
        os.kill(team[rank].process, signal.SIGUSR1)
    time.sleep(0.3)
    told = {rank: team[rank].told_since(offsets[rank]) for rank in late}
    waiting = [rank for rank in late if _in_collective(told[rank])]
    busy = [rank for rank in late if rank not in waiting]
    names = (
        f"rank {', '.join(map(str, busy))} hangs" if busy else "every late rank waits in a collective that the others left out"
    )
    if waiting and busy:
        names += f" and rank {', '.join(map(str, waiting))} waits for it in a collective"
    where = "\n".join(f"--- rank {rank}:\n{told[rank]}" for rank in (*busy, *waiting))
    return f"not done after {seconds} s on {len(team)} ranks: {names}.\n{where}"


def _in_collective(stack: str) -> bool:
    """Whether a faulthandler dump (innermost call first) begins inside torch.distributed."""
    innermost = re.findall(r'  File "([^"]*)", line \d+ in', stack.rpartition("most recent call first")[2])[:4]
    return any("torch/distributed/" in file for file in innermost)
