"""Measure eagle-kernels and its peers on this machine and write one result file.

    python packages/eagle-kernels/benchmarks/run.py --out FILE.json --commit SHA [--cases a,b] [--peers eager,liger] [--quick]

Exit code 1 when an answer of ours is wrong or missing. `--help` lists everything; the work is in `kernel_bench`.
"""

import sys

from kernel_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
