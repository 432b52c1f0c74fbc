"""The tests of `tests/gpu` on this machine, their outcomes written to a file: the command behind `gpu_tests.py`.

Promises: the record that eagle-kernels' harness writes for its own tests, with this package's version and these tests. Runs from
any folder of a checkout.
"""

from __future__ import annotations

from collections.abc import Sequence

import eagle_parallel

from parallel_bench import PACKAGE
from parallel_bench.shared import record_tests


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, record, and say how it went."""
    version = ("eagle-parallel", eagle_parallel.__version__)
    return record_tests(arguments, package=PACKAGE, tests="tests/gpu", version=version)
