"""Measure eagle-parallel on this machine and write one result file: the command behind `run.py`.

Promises: the file is complete after every row; what is absent, broken or wrong is named in it, and one broken part costs no
other. With one GPU the rows are those of `one_gpu.py`, under the case's name with `_compute` appended; the cases themselves need
two GPUs and are then listed as absent. Started by torchrun with two processes it measures those (`pair.py`). Exit code 1 when an
answer of ours is wrong or missing, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import eagle_parallel
import torch

from parallel_bench import pair
from parallel_bench.bare import KERNELS
from parallel_bench.emulated import emulated_kernels
from parallel_bench.exact import Truth
from parallel_bench.one_gpu import WrongAnswerError, memory_rows, retention_rows
from parallel_bench.packs import Pack, packs
from parallel_bench.rivals import RIVALS
from parallel_bench.shared import Record, free_memory, listed, open_record, setting_of
from parallel_bench.whole_step import step_memory_rows, vision_rows

RETENTION = (
    "retention_8k",
    "retention_32k",
    "retention_64k",
    "retention_video64k",
    "retention_sft32k",
    "retention_128k",
)
CASES = (*RETENTION, "vision_p2", "memory_p2")

Part = tuple[str, str, Callable[[], Iterator[dict[str, Any] | WrongAnswerError]]]


@dataclass(frozen=True)
class Wish:
    """The command line, checked. `seconds`: no part is started later than this after the beginning."""

    out: Path
    commit: str
    cases: tuple[str, ...]
    kernels: tuple[str, ...]
    quick: bool
    device: torch.device
    append: bool
    seconds: float


def read_arguments(arguments: Sequence[str] | None = None) -> Wish:
    """The wish, or exit code 2 with the argument's name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="comma-separated; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run? its figures mean nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--append", action="store_true", help="keep the file's rows of cases that are not measured now")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no part later than this; it is named as absent")
    given = parser.parse_args(arguments)
    try:
        wish = Wish(
            **{
                **vars(given),
                "cases": listed(given.cases, CASES, "--cases"),
                "kernels": listed(given.kernels, KERNELS, "--kernels"),
                "device": torch.device(given.device),
            }
        )
    except ValueError as error:
        parser.error(str(error))
    if wish.device.type == "cpu" and not wish.quick:
        parser.error("--device cpu: the real shapes need a GPU; add --quick")
    return wish


def head_of(wish: Wish) -> dict[str, Any]:
    """The head of the result file, with this package's version where the harness of eagle-kernels names its own."""
    head = setting_of(wish.device, wish.commit)
    versions = {"eagle-parallel": eagle_parallel.__version__} | head["versions"]
    versions.pop("eagle-kernels", None)
    return {**head, "versions": versions}


def parts(wish: Wish) -> list[Part]:
    """(case, implementation, rows) of everything that is wished, each of which may fail alone; what is slow comes last."""
    found: list[tuple[int, Part]] = []
    truths: dict[Pack, Truth] = {}
    seconds = 0.1 if wish.quick else 3.0
    for case in wish.cases:
        for pack in packs(case, wish.quick) if case in RETENTION else ():
            for kernel in wish.kernels:
                # Every length of a document costs cuDNN a plan, so its fine-tuning mix takes longest of all.
                late = 2 if kernel == "cudnn" and case == "retention_sft32k" else 0
                rows = partial(retention_rows, pack, kernel, wish.device, seconds, truths)
                found.append((late, (case, impl_of(kernel), rows)))
        if case == "memory_p2":
            for late, size in ((0, "retention_64k"), (1, "retention_128k")):
                for kernel in wish.kernels:
                    rows = partial(memory_rows, packs(size, wish.quick)[0], kernel, wish.device)
                    found.append((late, (case, impl_of(kernel), rows)))
            tokens = 128 if wish.quick else 32768
            found.append((1, (case, "eagle", partial(step_memory_rows, tokens, wish.device, wish.quick, "auto"))))
        if case == "vision_p2":
            found.append((0, (case, "eagle", partial(vision_rows, wish.device, wish.quick))))
    return [part for _, part in sorted(found, key=lambda entry: entry[0])]


def measure_pair(wish: Wish, record: Record) -> None:
    """The retention cases on the processes that torchrun started; the first one writes the record."""
    for case in wish.cases:
        if case not in RETENTION and int(os.environ["RANK"]) == 0:
            record.add_absent("eagle", "is not measured by torchrun; run it on one GPU", case)
    wanted = [pack for case in RETENTION if case in wish.cases for pack in packs(case, wish.quick)]
    pair.measure(wanted, wish.kernels, wish.device, 0.2 if wish.quick else 3.0, record)


def impl_of(kernel: str) -> str:
    """The name of our rows with a kernel; the default kernel's has no addition."""
    return "eagle" if kernel == "flash" else f"eagle_{kernel}"


def measure(wish: Wish, record: Record) -> None:
    """Every case of the wish, into the record."""
    begin = time.perf_counter()
    for case in wish.cases:
        record.add_absent("eagle", "two GPUs and NVLink were not there; what one GPU can tell is in the case with _compute", case)
        for rival in RIVALS if case in RETENTION else ():
            record.add_absent(rival, "needs two GPUs", case)
    for case, impl, rows in parts(wish):
        past = time.perf_counter() - begin
        if past > wish.seconds:
            record.add_absent(impl, f"not started: {past:.0f} s had passed of --seconds {wish.seconds:.0f}", f"{case}_compute")
            continue
        try:
            for row in rows():
                if isinstance(row, WrongAnswerError):
                    record.add_failure(f"{case}_compute", impl, {}, str(row))
                    print(f"WRONG {case}: {row}", flush=True)
                    continue
                record.add(row)
                print(line_of(row), flush=True)
        except Exception as error:  # one broken part must not cost the others
            record.add_failure(f"{case}_compute", impl, {}, f"{type(error).__name__}: {str(error)[:400]}")
            print(f"FAILED {case} {impl}: {type(error).__name__}: {error}", flush=True)
        free_memory(wish.device)
        print(f"{case} {impl}: {time.perf_counter() - begin - past:.1f} s", flush=True)


def forget(record: Record, wish: Wish) -> None:
    """Take out of an old record what is measured again: the wished cases, of the wished kernels."""
    names = {f"{case}{end}" for case in wish.cases for end in ("", "_compute", "_attention")}
    impls = tuple(impl_of(kernel) for kernel in wish.kernels)

    def again(line: dict[str, Any]) -> bool:
        kernel = line.get("kernel") or ("cudnn" if str(line["impl"]).startswith("eagle_cudnn") else "flash")
        return line["case"] in names and (impl_of(kernel) in impls or not str(line["impl"]).startswith("eagle"))

    for part in (record.rows, record.absent, record.failures):
        part[:] = [line for line in part if not again(line)]


def line_of(row: dict[str, Any]) -> str:
    """A row as one line of the terminal."""
    size = " ".join(f"{key}={value}" for key, value in row["shape"].items())
    words = {key: row[key] for key in ("one_gpu_ms", "rank_ms", "layout", "bare_gib", "rank_gib", "beyond_inputs") if key in row}
    words |= {key: row[key] for key in ("prediction_without_overlap", "prediction_with_overlap", "one_gpu_gib") if key in row}
    if "error" in row:
        words["times_bare_error"] = {name: row["error"][name] / row["bare_error"][name] for name in row["error"]}
        words["planner_error"] = (row["planner"]["one_gpu_error"], row["planner"]["rank_error"])
    extras = " ".join(f"{key}={short(value)}" for key, value in words.items())
    return f"{row['case']:28} {row['impl']:18} {row['value']:8.4f} {row['unit']:5} spread={row['spread']:.3f} {extras}  [{size}]"


def short(value: Any) -> str:
    """A figure with four digits, also inside a list or by name."""
    if isinstance(value, dict):
        return ",".join(f"{key}:{short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "/".join(short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the wish; the exit code."""
    wish = read_arguments(arguments)
    try:
        record = open_record(wish.out, head_of(wish), set(), wish.append)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if wish.append:
        forget(record, wish)
    with ExitStack() as stack:
        if wish.device.type == "cpu":
            stack.enter_context(emulated_kernels())
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            measure_pair(wish, record)
        else:
            measure(wish, record)
    if int(os.environ.get("RANK", "0")) == 0:
        record.write()
    for line in record.failures:
        print(f"FAILED: {line['impl']} {line['case']}: {line['error']}")
    return 1 if record.ours_failed() else 0
