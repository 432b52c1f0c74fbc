"""The result file of one run: what was measured, on what, with which versions, and what could not be measured.

Promises: the file on disk is complete JSON after every row, so a run that is killed keeps what it had. Nothing that was asked for
is missing without a line: `absent` names what a reader does not offer, `failures` what broke or answered wrongly.
Not for: judging the figures (`targets.py`) or showing them (the documentation's tables).
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

__all__ = ["SPREAD", "Record", "head_of"]

SPREAD = "range over median"


def hardware() -> str:
    """The processor's name as the system gives it, and how many cores this process may use."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.split(":", 1)[1].strip() for line in described if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def without_folders(word: str) -> str:
    """A word of the command line, an absolute path cut to its last part: where files lie is nobody's business."""
    name, equals, value = word.rpartition("=")
    return name + equals + (Path(value).name if Path(value).is_absolute() else value)


def head_of(command: list[str], commit: str, versions: dict[str, str]) -> dict[str, Any]:
    """The head of a result file: hardware, versions, commit, date (UTC) and command."""
    return {
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": shlex.join(["python", *map(without_folders, command)]),
        "spread": SPREAD,
    }


@dataclass
class Record:
    """A result file that grows; every method that adds a line also writes the file."""

    path: Path
    head: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    absent: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """A measured row: case, impl, shape, value, unit, runs, spread and whatever else the case states."""
        self.rows.append(row)
        self.write()

    def add_absent(self, impl: str, reason: str, case: str | None = None) -> None:
        """A reader that is not here (case None) or that does not offer a case."""
        self.absent.append({"impl": impl, "case": case, "reason": reason})
        self.write()

    def add_failure(self, case: str, impl: str, error: str) -> None:
        """A reader that raised, hung, or gave wrong frames."""
        self.failures.append({"case": case, "impl": impl, "error": error})
        self.write()

    def write(self) -> None:
        """Write everything so far; a reader of the file never sees half of it."""
        content = {**self.head, "rows": self.rows, "absent": self.absent, "failures": self.failures}
        half = self.path.with_name(self.path.name + ".half")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(half, self.path)
