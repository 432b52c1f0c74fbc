"""How fast a reader is on one file of your own: opening it, and N uniform frames. A quick look, not the published benchmark.

Each case runs once unmeasured, so that libraries and the page cache are warm, then `runs` times; the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .policies import Timeline, Uniform
from .video import open_video

__all__ = ["timing_lines"]


def timing_lines(
    source: str, *, backends: Sequence[str], counts: Sequence[int], size: tuple[int, int] | None, runs: int = 3
) -> Iterator[str]:
    """Lines of a table, one row per backend and case, as they are measured. Raises MediaError."""
    yield f"{'reader':<12} {'case':<14} {'median':>10}   frames decoded"
    for backend in backends:
        options: dict[str, Any] = {} if backend == "eagle" else {"backend": backend}
        seconds, _ = _median(lambda options=options: _open(source, options), runs)
        yield f"{backend:<12} {'open':<14} {seconds * 1e3:>7.1f} ms"
        for count in counts:
            seconds, decoded = _median(lambda count=count, options=options: _uniform(source, count, size, options), runs)
            shown = "" if decoded is None else f"   {decoded}"
            yield f"{backend:<12} {f'uniform {count}':<14} {seconds * 1e3:>7.1f} ms{shown}"


def _open(source: str, options: dict[str, Any]) -> None:
    open_video(source, **options).close()


def _uniform(source: str, count: int, size: tuple[int, int] | None, options: dict[str, Any]) -> int:
    with open_video(source, **options) as video:
        choice = Uniform(count).choose(Timeline.of(video))
        return video.frames_at(choice.indices, size=size, resize="swscale").decoded


def _median(work: Callable[[], int | None], runs: int) -> tuple[float, int | None]:
    times, answer = [], work()
    for _ in range(runs):
        started = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - started)
    return statistics.median(times), answer
