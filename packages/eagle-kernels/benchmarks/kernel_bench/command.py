"""Measure eagle-kernels and its peers on this machine and write one result file: the command behind `run.py`.

Promises: the file is complete after every row; what is absent or broken is named in it. Exit code 1 when an answer of ours is
wrong or missing, 2 for a wrong argument. Not for: judging the figures against the targets (`nox -s bench_tables` does).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kernel_bench import gated, linear_ce, norms, rope, step
from kernel_bench.measure import copy_rate, free_memory
from kernel_bench.peers import PEERS, Operators, load
from kernel_bench.problem import Problem, Setting, solve
from kernel_bench.profile import profiled
from kernel_bench.record import Record, open_record, setting_of
from kernel_bench.step_options import DEFAULTS, StepOptions, parse

OPERATORS: dict[str, Callable[[Setting], Iterator[Problem]]] = {
    "rms_norm_forward": partial(norms.problems, add=False, backward=False),
    "rms_norm_backward": partial(norms.problems, add=False, backward=True),
    "add_rms_norm_forward": partial(norms.problems, add=True, backward=False),
    "add_rms_norm_backward": partial(norms.problems, add=True, backward=True),
    "rope": rope.problems,
    "swiglu_forward": partial(gated.problems, backward=False),
    "swiglu_backward": partial(gated.problems, backward=True),
    "linear_ce_32768": partial(linear_ce.problems, case="linear_ce_32768", tokens=32768),
    "linear_ce_2048": partial(linear_ce.problems, case="linear_ce_2048", tokens=2048),
    "linear_ce_32768_supervised20": partial(
        linear_ce.problems, case="linear_ce_32768_supervised20", tokens=32768, supervised=0.2
    ),
    "linear_ce_32768_weighted": partial(linear_ce.problems, case="linear_ce_32768_weighted", tokens=32768, weighted=True),
}
STEPS = {"offload_32768": 32768, "step_32768": 32768, "step_131072": 131072}
CASES = (*OPERATORS, *STEPS)
QUICK_CHUNK = 48


@dataclass(frozen=True)
class Wish:
    """The command line, checked."""

    out: Path
    commit: str
    cases: tuple[str, ...]
    peers: tuple[str, ...]
    quick: bool
    device: torch.device
    append: bool
    chunk_rows: int
    step: tuple[str, ...]
    profile: str | None

    def options(self, case: str) -> StepOptions:
        """The step's settings: the case's own, changed by `--step`."""
        return parse(self.step, DEFAULTS[case])


def listed(text: str, allowed: Sequence[str], name: str) -> tuple[str, ...]:
    """A comma-separated list in the order of `allowed`; ValueError names a word that is not allowed."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in allowed:
            raise ValueError(f"{name}: {word!r} is not one of {', '.join(allowed)}.")
    return tuple(word for word in allowed if word in words)


def read_arguments(arguments: Sequence[str] | None = None) -> Wish:
    """The wish, or exit code 2 with the argument's name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; default: all; an empty text: none")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run? its figures mean nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--append", action="store_true", help="keep the file's rows of cases that are not measured now")
    parser.add_argument("--chunk-rows", type=int, default=4096, help="linear_cross_entropy's chunk_rows (its own default: 4096)")
    parser.add_argument("--step", nargs="*", default=(), metavar="KEY=VALUE", help="settings of ours in step_*")
    parser.add_argument("--profile", metavar="CASE", choices=CASES, help="instead of timing: a profile of ours beside --out")
    given = parser.parse_args(arguments)
    try:
        wish = Wish(
            **{
                **vars(given),
                "cases": (given.profile,) if given.profile else listed(given.cases, CASES, "--cases"),
                "peers": listed(given.peers, PEERS, "--peers"),
                "device": torch.device(given.device),
                "step": tuple(given.step),
            }
        )
        for case in DEFAULTS:
            wish.options(case)
    except ValueError as error:
        parser.error(str(error))
    if wish.quick:
        wish = replace(wish, chunk_rows=min(wish.chunk_rows, QUICK_CHUNK))
    if wish.device.type == "cpu" and not wish.quick:
        parser.error("--device cpu: the real shapes need a GPU; add --quick")
    return wish


def measure(wish: Wish, record: Record, setting: Setting) -> None:
    """Every case of the wish, into the record."""
    implementations, absent = load(wish.peers, wish.chunk_rows)
    for peer, reason in absent.items():
        record.add_absent(peer, reason)
    for case in wish.cases:
        begin = time.perf_counter()
        done = len(record.rows)
        try:
            if case in STEPS:
                measure_step(case, tuple(peer for peer in wish.peers if peer not in absent), wish, record, setting)
            else:
                measure_operator(case, implementations, record, setting)
        except Exception as error:  # one broken case must not cost the others
            record.add_failure(case, "eagle", {}, f"{type(error).__name__}: {str(error)[:400]}")
        free_memory(setting.device)
        for row in record.rows[done:]:
            print(line_of(row), flush=True)
        print(f"{case}: {time.perf_counter() - begin:.0f} s", flush=True)


def measure_operator(case: str, implementations: dict[str, Operators], record: Record, setting: Setting) -> None:
    """One operator's problems, a shape after the other."""
    for problem in OPERATORS[case](setting):
        solve(problem, implementations, record, setting)
        del problem
        free_memory(setting.device)


def measure_step(
    case: str, peers: Sequence[str], wish: Wish, record: Record, setting: Setting, profile: str | None = None
) -> None:
    """One of the cases that run a whole model, in processes of their own."""
    if case == "offload_32768":
        step.offload(case, STEPS[case], record, setting, profile)
    else:
        step.whole_steps(case, STEPS[case], peers, wish.options(case), record, setting, profile)


def profile_case(wish: Wish, record: Record, setting: Setting) -> None:
    """The profile of our implementation of one case, at its last shape, into `<out>-profile-<case>.txt`."""
    (case,) = wish.cases
    path = wish.out.with_name(f"{wish.out.stem}-profile-{case}.txt")
    if case in STEPS:
        measure_step(case, (), wish, record, setting, str(path))
    else:
        table = ""
        for problem in OPERATORS[case](setting):
            if not problem.suffix:
                call = problem.start(load((), wish.chunk_rows)[0]["eagle"][problem.operator])
                table = profiled(call, setting.device)
        path.write_text(table, encoding="utf-8")
    print(path.read_text(encoding="utf-8") if path.exists() else f"no profile of {case}: {record.failures}")


def line_of(row: dict) -> str:
    """A row as one line of the terminal."""
    size = " ".join(f"{key}={value}" for key, value in row["shape"].items())
    extras = " ".join(f"{key}={row[key]:.4g}" for key in ("spread", "floor", "peak_gib", "error", "eager_error") if row.get(key))
    return f"{row['case']:30} {row['impl']:18} {row['value']:10.4g} {row['unit']:5} {extras}  [{size}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the wish; the exit code."""
    wish = read_arguments(arguments)
    try:
        record = open_record(wish.out, setting_of(wish.device, wish.commit), set(wish.cases), wish.append)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    torch.manual_seed(0)
    setting = Setting(wish.device, wish.quick, copy_rate(wish.device, wish.quick), wish.chunk_rows)
    if wish.profile:
        profile_case(wish, record, setting)
    else:
        measure(wish, record, setting)
    for line in record.absent:
        print(f"absent: {line['impl']} {line['case'] or ''}: {line['reason']}")
    for line in record.failures:
        print(f"FAILED: {line['impl']} {line['case']}: {line['error']}")
    return 1 if record.ours_failed() else 0
