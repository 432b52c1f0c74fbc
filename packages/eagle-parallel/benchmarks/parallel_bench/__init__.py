"""The benchmark harness of eagle-parallel: cases, ranks on one GPU, timing, and the record of a run. `run.py` is its command.

Promises: nothing is timed before its answer was compared with float64 on the very inputs. Timing, result files and the recorded
test run are those of eagle-kernels' harness (`kernel_bench`), which lies beside this one in the repository.
Not for: import from the package or by its users; it is never part of a wheel.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
KERNELS = PACKAGE.parent / "eagle-kernels"

# A checkout can be measured without installing it; installed packages come first.
for _module, _folder in (
    ("eagle_parallel", PACKAGE / "src"),
    ("eagle_kernels", KERNELS / "src"),
    ("kernel_bench", KERNELS / "benchmarks"),
):
    if find_spec(_module) is None:
        sys.path.insert(0, str(_folder))
