"""The progress of a preparation on a terminal: one line that is written over, with a bar where the number of records is known.

Pure text but for the stream it is given. Not for counting records: that is `annotation_files.count_records`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_WIDTH, _EVERY = 24, 0.1


class ProgressLine:
    """Called with a dataset's name and the number of its lines done, as `prepare` does; `totals` are None where not known."""

    def __init__(self, stream: TextIO, totals: dict[str, int | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._totals, self._clock = stream, totals, clock
        self._name, self._begun, self._shown, self._width = "", 0.0, -1.0, 0

    def __call__(self, name: str, done: int) -> None:
        now = self._clock()
        if name != self._name:
            self.close()
            self._name, self._begun, self._shown = name, now, -1.0
        total = self._totals.get(name)
        if self._shown >= 0 and now - self._shown < _EVERY and done != total:
            return
        self._shown = now
        rate = done / max(now - self._begun, 1e-3)
        if total:
            filled = min(done * _WIDTH // total, _WIDTH)
            left = f", {max(total - done, 0) / rate:.0f} s left" if rate else ""
            bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {min(done * 100 // total, 100)} %"
            text = f"{name} {bar}  {done} of {total} lines, {rate:.0f}/s{left}"
        else:
            text = f"{name}  {done} lines, {rate:.0f}/s"
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def close(self) -> None:
        """End the line, if one was begun."""
        if self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0
