"""The tests of `tests/gpu` on this machine, their outcomes written to a file: the command behind `gpu_tests.py`.

Promises: the record that eagle-kernels' harness writes for its own tests, with this package's version and these tests. Runs from
any folder of a checkout.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import eagle_parallel
import torch

from parallel_bench import PACKAGE
from parallel_bench.shared import outcomes, run_tests, setting_of, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, record, and say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is tested")
    given, rest = parser.parse_known_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(PACKAGE / "src"))))
    paths = [] if any(not word.startswith("-") and Path(word).exists() for word in rest) else [str(PACKAGE / "tests" / "gpu")]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests([*paths, *rest], report)
        tests = outcomes(report) if report.exists() else []
    counts = Counter(test["outcome"] for test in tests)
    head = setting_of(device, given.commit)
    versions = {"eagle-parallel": eagle_parallel.__version__} | head["versions"]
    versions.pop("eagle-kernels", None)
    content = {
        **head,
        "versions": versions,
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "seconds": round(sum(test["seconds"] for test in tests), 1),
        "pytest_exit_code": code,
        "tests": tests,
    }
    write_json(given.out, content)
    print(f"{content['hardware']}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if code == 0 and tests else 1
