"""Where groups are prepared: in this process, or by a pool of processes of this machine. (`group_ray` is the third place.)

An engine takes tasks in order and gives them back in order once their results lie in the store; a task without work passes
through. Promises of the pool: it starts with the first task that needs it and imports no framework; a worker that dies is
replaced and its group done again, and a record at which workers die twice is left out with that reason; when the driver dies,
each worker finishes its group, keeps it, and ends. Not for deciding what must be done (`prepare`).
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from eagle_data.annotation_files import Chunk
from eagle_data.group_work import GroupSettings, GroupWorker
from eagle_data.tokens import PromptTokenizer

_AHEAD = 4
"""Tasks in hand for each worker: a slow group at the front holds nobody up until so many others are done."""
_DEATHS, _DEATHS_UNREAD = 2, 5


@dataclass(frozen=True)
class Task:
    """One group to prepare; without a chunk its result is there already."""

    settings: GroupSettings
    key: str
    chunk: Chunk | None


Engine = Callable[[Iterator[Task]], Iterator[Task]]


def here(tokenizer: PromptTokenizer) -> Engine:
    """The engine that works in this process."""
    worker = GroupWorker(tokenizer)

    def run(tasks: Iterator[Task]) -> Iterator[Task]:
        for task in tasks:
            if task.chunk is not None:
                worker.work(task.settings, task.key, task.chunk)
            yield task

    return run


class LocalPool:
    """An engine of `workers` processes; close it, or use it in a `with` block."""

    def __init__(self, tokenizer: PromptTokenizer, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: a pool has at least one process")
        self.workers = workers
        self._tokenizer = tokenizer.to_text()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="eagle-data-prepare")
        self._own = threading.local()
        self._all: list[_Worker] = []
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that were started and live."""
        return [worker.process.pid for worker in list(self._all) if worker.process.poll() is None]

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every worker, in the middle of its group where it has one."""
        self._closed = True
        for worker in list(self._all):
            worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._all:
            worker.close()

    def __call__(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The engine: see the module."""
        ahead: deque[tuple[Task, Future[None] | None]] = deque()
        waiting = 0
        for task in tasks:
            future = None if task.chunk is None else self._threads.submit(self._do, task)
            ahead.append((Task(task.settings, task.key, None), future))
            waiting += future is not None
            while ahead and (waiting >= _AHEAD * self.workers or ahead[0][1] is None or ahead[0][1].done()):
                first, future = ahead.popleft()
                if future is not None:
                    future.result()
                    waiting -= 1
                yield first
        for first, future in ahead:
            if future is not None:
                future.result()
            yield first

    def _do(self, task: Task) -> None:
        """Have one task done by this thread's worker, and by its successors should it die."""
        assert task.chunk is not None
        died: Counter[int] = Counter()
        left_out: dict[int, str] = {}
        while not self._closed:
            worker: _Worker | None = getattr(self._own, "worker", None)
            if worker is None:
                worker = self._own.worker = _Worker(self._tokenizer)
                self._all.append(worker)
                if self._closed:
                    worker.process.kill()
            answer = worker.ask(task, left_out)
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise answer
            self._own.worker = None
            worker.close()
            self._all.remove(worker)
            died[answer.record] += 1
            if died[-1] == _DEATHS_UNREAD:
                raise RuntimeError(f"a worker {answer.how} before it read its first record; run with workers=0 to see why")
            if answer.record >= 0 and died[answer.record] == _DEATHS:
                left_out[answer.record] = (
                    f"a worker {answer.how} twice when it read this sample; check its media for damage, or leave it out"
                )


@dataclass(frozen=True)
class _Death:
    """A worker that ended in the middle of a group: at which record (-1 before the first), and how."""

    record: int
    how: str


class _Worker:
    """One process and the pipes to it."""

    def __init__(self, tokenizer: str) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(8)
            self._mark = mmap.mmap(file.fileno(), 8)
            code = f"import sys; sys.path[:] = {sys.path!r}; import eagle_data.group_engines as e; e.serve(int(sys.argv[1]))"
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[file.fileno()],
            )
        self._hello: str | None = tokenizer

    def ask(self, task: Task, left_out: dict[int, str]) -> BaseException | _Death | None:
        """Have a task done: None when it is, the error that it raised, or how the worker died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        _set_mark(self._mark, -1)
        try:
            if self._hello is not None:
                pickle.dump(self._hello, self.process.stdin)
                self._hello = None
            pickle.dump((task, left_out), self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.process.wait()
            how = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
            return _Death(int.from_bytes(self._mark[:8], "little", signed=True), how)

    def close(self) -> None:
        """Reap the process, which has ended or ends now that its input does."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent to a dead worker
                    pipe.close()
        self.process.wait()
        self._mark.close()


def serve(mark: int) -> None:
    """The life of a worker process: groups from stdin until it ends; results go to the store, answers to what was stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted driver ends its workers itself
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    shared = mmap.mmap(mark, 8)
    questions = sys.stdin.buffer
    try:
        worker = GroupWorker(PromptTokenizer.from_text(pickle.load(questions)))
        while True:
            task, left_out = pickle.load(questions)
            answer: Any = None
            try:
                worker.work(task.settings, task.key, task.chunk, left_out=left_out, begun=lambda at: _set_mark(shared, at))
            except Exception as error:
                answer = error
            try:
                data = pickle.dumps(answer)
            except Exception:
                data = pickle.dumps(RuntimeError(repr(answer)))
            answers.write(data)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the driver is gone or done


def _set_mark(mark: mmap.mmap, record: int) -> None:
    mark[:8] = record.to_bytes(8, "little", signed=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
