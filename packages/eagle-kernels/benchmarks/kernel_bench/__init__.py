"""The benchmark harness of eagle-kernels: cases, peers, timing, and the record of a run. `run.py` beside it is its command.

Promises: nothing is timed before its answer was compared with float64 on the very inputs; peers run in the same process as the
operators, turn by turn. Not for: import from the package or by its users; it is never part of a wheel.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

# A checkout can be measured without installing it; an installed eagle_kernels comes first.
if find_spec("eagle_kernels") is None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
