"""Measure eagle-data's video reader and its peers on this machine and write one result file.

    python packages/eagle-data/benchmarks/run.py --out FILE.json --commit SHA --videos DIR --peer torchcodec=PYTHON …

Exit code 1 when an answer of ours is wrong or missing. `--help` lists everything; the work is in `data_bench`.
"""

import sys

from data_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
