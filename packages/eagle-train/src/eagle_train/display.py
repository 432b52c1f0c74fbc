"""What a person sees of a run: phases with a bar, and for training the stage, step, loss, tokens/s and time left.

On a terminal the bar is live; elsewhere a plain line is printed now and then. Nothing here influences the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

LINE_EVERY = 10.0
"""Seconds between printed lines where there is no terminal."""


class Bar:
    """A running phase: `update(done, note)` moves it. A total of None is not known."""

    def __init__(self, progress: Progress | None, display: Display, title: str, total: int | None):
        self._progress, self._display, self._title, self._total = progress, display, title, total
        self._task = progress.add_task(escape(title), total=total, note="") if progress else None
        self._printed = time.monotonic()

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Set how much is done, with a note beside the bar."""
        self._total = total or self._total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total, note=escape(note))
        elif time.monotonic() - self._printed >= LINE_EVERY:
            self._printed = time.monotonic()
            of = "" if self._total is None else f"/{self._total}"
            self._display.say(escape(f"  {self._title}: {done}{of}  {note}"))


class Display:
    """Prints to `console`; `say` writes a line, `phase` shows a bar while its block runs."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console()

    def say(self, text: str) -> None:
        """One line of rich markup; text that is not ours must be escaped."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, title: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """A bar from `done` to `total`, None where it is not known; where the block ends well, a line says how long it took."""
        start = time.monotonic()
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                bar = Bar(progress, self, title, total)
                bar.update(done)
                yield bar
        else:
            yield Bar(None, self, title, total)
        self.say(f"[green]✓[/] {escape(title):<24}[dim]{duration(time.monotonic() - start):>8}[/]")


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


__all__ = ["Bar", "Display", "duration"]
