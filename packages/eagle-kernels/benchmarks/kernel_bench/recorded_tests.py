"""Run the tests of eagle-kernels on this machine and write their outcomes to a file: the command behind `gpu_tests.py`.

Promises: `{hardware, versions, driver, commit, date, command, passed, failed, skipped, seconds, tests}`, where `tests` names
every test with its outcome and seconds. Exit code 0 when all passed, 1 when any failed or none ran. Needs pytest and
hypothesis; runs from any folder, with the checkout's settings for pytest replaced by what these tests need.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import torch

from kernel_bench.record import setting_of, write_json

PACKAGE = Path(__file__).parents[2]
OPTIONS = ("-o", "addopts=--import-mode=importlib", "-m", "not soak", "-q")


def outcomes(report: Path) -> list[dict[str, Any]]:
    """Name, outcome (passed, failed, skipped) and seconds of every test in a JUnit report; skips and failures with why."""
    tests = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, why = "passed", None
        for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
            found = case.find(kind)
            if found is not None:
                outcome, why = word, (found.get("message") or "")[:300]
        name = f"{case.get('classname')}::{case.get('name')}"
        tests.append({"name": name, "outcome": outcome, "seconds": float(case.get("time", 0))} | ({"why": why} if why else {}))
    return tests


def run_tests(arguments: Sequence[str], report: Path, package: Path = PACKAGE, tests: str = "tests") -> int:
    """pytest's exit code; the report is written as JUnit XML. Without a path among the arguments, `tests` of `package` run."""
    paths = [] if any(not word.startswith("-") and Path(word).exists() for word in arguments) else [str(package / tests)]
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--junitxml={report}", *paths, *arguments]
    searched = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(package / "src"))))
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": searched}).returncode


def main(
    arguments: Sequence[str] | None = None,
    *,
    package: Path = PACKAGE,
    tests: str = "tests",
    version: tuple[str, str] | None = None,
) -> int:
    """Run, record, and say how it went.

    Args:
        arguments: of the command line.
        package: folder whose `src` is tested.
        tests: its tests, below that folder.
        version: (name, version) of another package, recorded in place of eagle-kernels'.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is tested")
    given, rest = parser.parse_known_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests(rest, report, package, tests)
        found = outcomes(report) if report.exists() else []
    counts = Counter(test["outcome"] for test in found)
    head = setting_of(device, given.commit)
    if version is not None:
        others = {name: value for name, value in head["versions"].items() if name != "eagle-kernels"}
        head["versions"] = dict([version]) | others
    content = {
        **head,
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "seconds": round(sum(test["seconds"] for test in found), 1),
        "pytest_exit_code": code,
        "tests": found,
    }
    write_json(given.out, content)
    print(f"{content['hardware']}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if code == 0 and found else 1
