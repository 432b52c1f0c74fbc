"""The result file of one run: what was measured, on what, with which versions, and what could not be measured.

Promises: the file on disk is complete JSON after every row, so a run that is killed keeps what it had. Nothing that was asked
for is missing without a line: `absent` names what does not exist here, `failures` what broke or answered wrongly.
Not for: judging the figures (`targets.py`) or showing them (the documentation's tables).
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import eagle_kernels
import torch

from kernel_bench.measure import SPREAD

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "liger-kernel",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "cut-cross-entropy",
)


def without_folder(word: str) -> str:
    """An absolute path's last part, any other word as it is: where a machine keeps its files is nobody's business."""
    return Path(word).name if Path(word).is_absolute() else word


def hardware(device: torch.device) -> str:
    """The device's name as its driver gives it, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def driver() -> str | None:
    """The NVIDIA driver's version, or None where nvidia-smi is not found or fails."""
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(question, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def versions() -> dict[str, str]:
    """Python, CUDA, cuDNN and every package that can decide a figure; a package that is not installed is not listed."""
    found = {"python": platform.python_version(), "eagle-kernels": eagle_kernels.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def setting_of(device: torch.device, commit: str, command: str | None = None) -> dict[str, Any]:
    """The head of a result file: hardware, versions, driver, commit, date (UTC) and command."""
    return {
        "hardware": hardware(device),
        "versions": versions(),
        "driver": driver() if device.type == "cuda" else None,
        "commit": commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": command or shlex.join(["python", *(without_folder(word) for word in sys.argv)]),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(half, path)


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
        """An implementation that is not here (case None) or that does not offer a case."""
        line = {"impl": impl, "case": case, "reason": reason}
        if line not in self.absent:
            self.absent.append(line)
            self.write()

    def add_failure(self, case: str, impl: str, shape: dict[str, int], error: str) -> None:
        """An implementation that raised, or ours when its answer is wrong."""
        line = {"case": case, "impl": impl, "shape": shape, "error": error}
        if line not in self.failures:
            self.failures.append(line)
            self.write()

    def ours_failed(self) -> list[dict[str, Any]]:
        """The failures of this package's own implementations."""
        return [failure for failure in self.failures if failure["impl"].startswith("eagle")]

    def write(self) -> None:
        """Write everything so far."""
        content = {**self.head, "spread": SPREAD, "rows": self.rows, "absent": self.absent, "failures": self.failures}
        write_json(self.path, content)


def open_record(path: Path, head: dict[str, Any], cases: set[str], append: bool) -> Record:
    """A new record, or with `append` one that keeps the file's rows of all cases that are not measured again.

    Raises:
        ValueError: `append`, and the file was measured on other hardware, versions or another commit.
    """
    if not append or not path.exists():
        return Record(path, head)
    old = json.loads(path.read_text(encoding="utf-8"))
    for key in ("hardware", "versions", "driver", "commit"):
        if old[key] != head[key]:
            raise ValueError(f"--append: {path} has {key} {old[key]!r}, this run has {head[key]!r}; write to a new file.")
    kept = {
        part: [line for line in old[part] if str(line["case"]).removesuffix("_inexact") not in cases]
        for part in ("rows", "absent", "failures")
    }
    return Record(path, {**head, "command": f"{old['command']} && {head['command']}"}, **kept)
