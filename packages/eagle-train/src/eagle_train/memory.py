"""Peak memory of this process and its children, sampled by a thread twice a second."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """A context that records the largest resident memory, in GiB, summed over the process tree.

    Shared pages are counted once per process, so the figure is an upper bound. `start` carries on the peak of an
    earlier run of the same job. `root` is the process at the top of the tree, by default this one.
    """

    def __init__(self, start: float = 0.0, interval: float = 0.5, *, root: int | None = None):
        self.gib = start
        self._root = root
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def sample(self) -> float:
        """Measure now and return the peak so far."""
        process = psutil.Process(self._root)
        total = 0
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.gib = max(self.gib, total / 2**30)
        return self.gib

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
