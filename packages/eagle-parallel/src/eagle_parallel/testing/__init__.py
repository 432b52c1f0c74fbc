"""Run a function on several gloo processes of this machine and collect what each returns: for tests of parallel code.

The function lives in an ordinary file and is named, not pickled, so a test module can hold both the function and its tests. The
processes stay alive between tests. `record_collectives` and `check_collectives` compare what the ranks said to each other. Not a
launcher for training.
"""

from eagle_parallel.testing.fingerprint import Collective, check_collectives, record_collectives
from eagle_parallel.testing.pool import Pool
from eagle_parallel.testing.ranks import run_ranks

__all__ = ["Collective", "Pool", "check_collectives", "record_collectives", "run_ranks"]
