"""What a test does in a process of its own, because it may hang, crash or leak there: `python child.py read|fuzz|leak …`.

Promises: each ends with one line of JSON on standard output; `fuzz` names every seed before it is tried, so that a parent knows
which one killed it. A call that lasts longer than its budget ends the process with a traceback on standard error.
Not for: judging what comes back (`test_damage.py`).
"""

from __future__ import annotations

import faulthandler
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from eagle_data import MediaError, open_video
from surgery import mutated, tables_of  # pyright: ignore[reportImplicitRelativeImport]

BUDGET_SECONDS = 60
EVERY = 1 / 30
"""Seconds between the frames of the damaged files."""
MEMORY_BYTES = 6 << 30
"""Of address space: a table that lies about its length must not be believed."""


def read(path: Path, out: Path, truncated: bool) -> dict[str, Any]:
    """Ask for every frame by number, one by one and all together, then for what is shown at every `EVERY` seconds; what is given
    goes to `out`, with the second that was asked for. `truncated` accepts files that were cut."""
    try:
        video = open_video(path, truncated=truncated)
    except MediaError as error:
        return {"error": str(error)}
    given, refused = [], 0
    with video:
        frames, end = video.metadata.frames, video.metadata.duration
        for asked in [[number] for number in range(frames)] + [list(range(frames))]:
            try:
                found = video.frames_at(asked)
            except MediaError:
                refused += 1
                continue
            given.append((found.pixels, found.seconds, found.corrupt))
        by_number = sum(len(part[1]) for part in given)
        for second in np.arange(EVERY / 2, end, EVERY).tolist():
            try:
                found = video.frames_at(seconds=[second])
            except MediaError:
                continue
            given.append((found.pixels, np.array([second]), found.corrupt))
    if given:
        pictures, seconds, corrupt = (np.concatenate(parts) for parts in zip(*given, strict=True))
        np.savez(out, pictures=pictures, seconds=seconds, corrupt=corrupt, by_number=by_number)
    return {"frames": frames, "given": by_number, "refused": refused}


def fuzz(path: Path, first: int, end: int) -> dict[str, Any]:
    """Open the file with its tables mutated by each seed and ask for three frames; count what was read and what was refused, and
    name what raised anything but a MediaError."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    data = path.read_bytes()
    places = tables_of(data)
    read, refused, raised = 0, 0, []
    for seed in range(first, end):
        print(f"seed {seed}", flush=True)
        faulthandler.dump_traceback_later(BUDGET_SECONDS, exit=True)
        try:
            with open_video(mutated(data, places, seed)) as video:
                last = video.metadata.frames - 1
                video.frames_at(sorted({0, last // 2, last}))
            read += 1
        except MediaError:
            refused += 1
        except Exception as error:
            raised.append(f"seed {seed}: {type(error).__name__}: {error}")
    faulthandler.cancel_dump_traceback_later()
    return {"read": read, "refused": refused, "raised": raised}


def leak(path: Path, times: int) -> dict[str, float]:
    """Megabytes by which the process grew over so many opens of four frames each, after a tenth as many to warm up."""
    before = 0.0
    for turn in range(times + times // 10):
        if turn == times // 10:
            gc.collect()
            before = resident_mb()
        with open_video(path) as video:
            video.frames_at([0, 20, 45, 80])
    gc.collect()
    return {"grown_mb": resident_mb() - before}


def resident_mb() -> float:
    """Memory held now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main(command: str, path: str, *rest: str) -> None:
    """Dispatch, with the budget over all."""
    faulthandler.enable()
    if command == "read":
        faulthandler.dump_traceback_later(BUDGET_SECONDS, exit=True)
        result: dict[str, Any] = read(Path(path), Path(rest[0]), "truncated" in rest)
    elif command == "fuzz":
        result = fuzz(Path(path), int(rest[0]), int(rest[1]))
    else:
        result = leak(Path(path), int(rest[0]))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
