"""Measure eagle-parallel on this machine and write one result file.

    python packages/eagle-parallel/benchmarks/run.py --out FILE.json --commit SHA [--cases a,b] [--kernels flash] [--quick]

Exit code 1 when an answer of ours is wrong or missing. `--help` lists everything; the work is in `parallel_bench`.
"""

import sys

from parallel_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
