"""Whole training steps at 7.62 B parameters and 32768 or 131072 tokens, and offloaded against plain checkpointing.

Promises: every implementation of `step_*` runs in a process of its own; those of `offload_32768` share one model and take turns.
Loss and gradient norm are compared with the first peer that ran; ours is red when they differ by more than 2 %.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel_bench.problem import Setting
from kernel_bench.record import Record
from kernel_bench.step_options import Job, StepOptions

BENCHMARKS = Path(__file__).parents[1]
WORKER = "kernel_bench.step_worker"
TOLERANCE = 0.02
OFFLOAD = ("plain", "eagle_no_offload", "eagle")


def start(job: Job) -> list[dict[str, Any]]:
    """Run one job in its own process and return its lines; a process that dies is a failure of every implementation in it."""
    searched = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", WORKER, job.to_json()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": searched})
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"impl"')]
    answered = {line["impl"] for line in lines}
    said = f"exit code {done.returncode}: {done.stderr.strip()[-400:]}"
    return lines + [{"impl": impl, "failure": said} for impl in job.impls if impl not in answered]


def off_by(line: dict[str, Any], reference: dict[str, Any]) -> float:
    """The larger relative difference of loss and gradient norm."""
    return max(abs(line[key] / reference[key] - 1) for key in ("loss", "grad_norm"))


def write(case: str, job: Job, lines: Sequence[dict[str, Any]], reference: dict[str, Any] | None, record: Record) -> None:
    """Rows and failures of some answers; the head of each row is that of every other case."""
    shape = {"tokens": job.tokens}
    for line in lines:
        impl = line["impl"]
        if "failure" in line:
            record.add_failure(case, impl, shape, line["failure"])
            continue
        error = None if reference is None else off_by(line, reference)
        if impl.startswith("eagle") and error is not None and not error <= TOLERANCE:
            told = f"wrong answer: loss {line['loss']}, gradient norm {line['grad_norm']}; {reference}"
            record.add_failure(case, impl, shape, told)
            continue
        kept = {key: value for key, value in line.items() if key != "impl" and value is not None}
        row = {"case": case, "impl": impl, "shape": shape, "unit": "s", **kept}
        if error is not None:
            row["error"] = error
        if impl == "eagle":
            row["options"] = asdict(job.options)
        record.add(row)


def whole_steps(
    case: str, tokens: int, peers: Sequence[str], options: StepOptions, record: Record, setting: Setting, profile: str | None
) -> None:
    """transformers (where it fits), Liger and ours, one process each."""
    impls = [impl for impl, peer in (("transformers", "eager"), ("liger", "liger")) if peer in peers]
    if tokens > 32768 and "transformers" in impls:
        impls.remove("transformers")
        record.add_absent("transformers", "its logits alone pass the device's memory", case)
    reference = None
    for impl in (*impls, "eagle"):
        job = Job(
            case=case,
            impls=(impl,),
            tokens=tokens // 256 if setting.quick else tokens,
            runs=2 if tokens <= 32768 else 1,
            device=setting.device.type,
            quick=setting.quick,
            options=options,
            profile=profile if impl == "eagle" else None,
        )
        lines = start(job)
        write(case, job, lines, reference, record)
        if reference is None and "failure" not in lines[0]:
            reference = {key: lines[0][key] for key in ("loss", "grad_norm")}


def offload(case: str, tokens: int, record: Record, setting: Setting, profile: str | None) -> None:
    """The step under torch's checkpoint, under ours without offload, and with the layer inputs in host memory; same operators."""
    job = Job(
        case=case,
        impls=OFFLOAD,
        tokens=tokens // 256 if setting.quick else tokens,
        runs=3,
        device=setting.device.type,
        quick=setting.quick,
        options=StepOptions(offload_inputs=True),
        profile=profile,
    )
    lines = start(job)
    first = lines[0]
    write(case, job, lines, None if "failure" in first else {key: first[key] for key in ("loss", "grad_norm")}, record)
