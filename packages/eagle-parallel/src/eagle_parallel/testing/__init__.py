"""Run a function on several gloo processes of this machine and collect what each returns: for tests of parallel code.

The function lives in an ordinary file and is named, not pickled, so a test module can hold both the function and its tests. One
start serves several world sizes. Not a launcher for training.
"""

from eagle_parallel.testing.ranks import run_ranks

__all__ = ["run_ranks"]
