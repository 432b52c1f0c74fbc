"""The journal of a run: every answer that was paid for, on disk before it is used, so that no kill can lose it.

One JSON object a line, appended and synced; a line that a kill cut off is removed when the file is opened again. Finished
answers are found by their request's key; spoiled ones stay in the file for people, and count as spent. One process at a time
holds a journal. Not for: what was answered with (no keys of endpoints, no frames).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle_data.errors import EagleDataError

__all__ = ["Journal", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Tokens that an endpoint counted."""

    input: int = 0
    output: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input + other.input, self.output + other.output)


class Journal:
    """An open journal. May be shared between threads. Use it as a context manager.

    Memory grows with the number of answers, not with their length: only places in the file are kept.

    Raises EagleDataError where another process holds it or a line in its midst is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = Usage()
        self.requests = 0
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            os.close(self._file)
            raise EagleDataError(f"{path}: another run is writing it; wait for its end or give another --out.") from error
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def answer(self, key: str) -> Any | None:
        """The finished answer of a request, decoded JSON; None where there is none."""
        place = self._places.get(key)
        return None if place is None else json.loads(os.pread(self._file, place[1], place[0]))["answer"]

    def finish(self, key: str, kind: str, unit: str, answer: Any, usage: Usage) -> None:
        """Store a finished answer; it is on disk when this returns."""
        self._append({"key": key, "kind": kind, "unit": unit, "answer": answer}, usage)

    def spoil(self, key: str, kind: str, unit: str, reply: str, reason: str, usage: Usage) -> None:
        """Store an answer that was paid for and cannot be used, with the reason."""
        self._append({"key": key, "kind": kind, "unit": unit, "spoiled": reply, "reason": reason}, usage)

    def _append(self, line: dict[str, Any], usage: Usage) -> None:
        data = json.dumps({**line, "input_tokens": usage.input, "output_tokens": usage.output}).encode() + b"\n"
        with self._lock:
            place = os.lseek(self._file, 0, os.SEEK_END)
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
            self._take(line, place, len(data), usage)

    def _take(self, line: dict[str, Any], place: int, length: int, usage: Usage) -> None:
        self.spent += usage
        self.requests += 1
        if "answer" in line:
            self._places[line["key"]] = (place, length)

    def _read(self) -> None:
        place = 0
        with open(self._file, "rb", closefd=False) as lines:
            for number, data in enumerate(lines, 1):
                if not data.endswith(b"\n"):  # cut off by a kill: its answer was never used
                    os.ftruncate(self._file, place)
                    return
                try:
                    line = json.loads(data)
                    self._take(line, place, len(data), Usage(int(line["input_tokens"]), int(line["output_tokens"])))
                except (ValueError, KeyError, TypeError) as error:
                    mend = "remove that line, and its answer is asked for again"
                    raise EagleDataError(f"{self.path}:{number}: is no line of a journal ({error}); {mend}.") from error
                place += len(data)
