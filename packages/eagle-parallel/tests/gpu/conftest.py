"""Ranks that are threads lie with the benchmarks: put those on the import path, or leave the tests out where they are absent."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if BENCHMARKS.is_dir():
    sys.path.insert(0, str(BENCHMARKS))
else:
    collect_ignore_glob = ["test_*.py"]
