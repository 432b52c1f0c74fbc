"""Run the tests of eagle-parallel that need a GPU on this machine and write their outcomes to a file: the recorded run.

    python packages/eagle-parallel/benchmarks/gpu_tests.py --out FILE.json --commit SHA [pytest arguments]

Exit code 0 when all passed, 1 when any failed or none ran. Needs pytest and hypothesis.
"""

import sys

from parallel_bench.recorded_tests import main

if __name__ == "__main__":
    sys.exit(main())
