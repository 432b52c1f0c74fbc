"""One measurement in a fresh process of the reader's own interpreter: `python -m data_bench.worker JOB`, JSON in and JSON out.

Promises: the reader's modules are imported before the clock starts; it stops when all pictures lie in one array. Peak memory is
what the process grew by from before the file was opened, the returned array included; bytes read are those asked of the system
through read calls. Needs numpy and the reader, nothing else. Not for: repeating or comparing (`command.py`).
"""

from __future__ import annotations

import json
import pkgutil
import platform
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data_bench.cases import middles
from data_bench.readers import READERS, version_of


def status(name: str) -> int:
    """A line of this process's status in bytes, such as VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name} in /proc/self/status: this needs Linux")


def bytes_read() -> int:
    """Bytes this process has asked of read calls."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split("rchar:")[1].split()[0])


def load(module: str) -> None:
    """Import a module, or with ``.*`` every module of a package."""
    package = import_module(module.removesuffix(".*"))
    if module.endswith(".*"):
        for found in pkgutil.iter_modules(package.__path__):
            import_module(f"{package.__name__}.{found.name}")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Open, read as the case says, and tell what it took."""
    modules, _, reader = READERS[job["reader"]]
    for module in modules:
        load(module)
    size, threads = (int(job["size"][0]), int(job["size"][1])), int(job["threads"])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    held, read, usage = status("VmRSS"), bytes_read(), resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    opened = reader(job["path"], size, threads)
    pictures, indices = np.empty((0, size[1], size[0], 3), np.uint8), []
    if job["kind"] == "uniform":
        indices = job.get("indices") or middles(opened.frames, job["frames"])
        pictures = opened.read(indices)
    elif job["kind"] == "segment":
        pictures, indices = opened.segments(job["frames"])
    seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_SELF)
    if job["kind"] != "open" and (pictures.shape != (len(indices), size[1], size[0], 3) or pictures.dtype != np.uint8):
        raise ValueError(f"gave {pictures.shape} of {pictures.dtype} for {len(indices)} frames of {size}")
    result = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime,
        "grown_bytes": status("VmHWM") - held,
        "read_bytes": bytes_read() - read,
        "frames": opened.frames,
        "decoded": getattr(opened, "decoded", None),
        "indices": [int(index) for index in indices],
        "version": version_of(job["reader"]),
        "python": platform.python_version(),
    }
    if job.get("keep"):
        np.save(job["keep"], pictures)
    return result


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
