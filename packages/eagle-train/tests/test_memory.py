"""Peak memory: seen while it lasts, over children too, and carried on from an earlier start."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from eagle_train.memory import PeakMemory

MIB = 2**20


def test_a_peak_between_two_measurements_of_ours_is_seen_by_the_thread():
    with PeakMemory(interval=0.01) as memory:
        before = memory.sample()
        block = np.ones(200 * MIB, dtype=np.uint8)
        time.sleep(0.2)
        del block
    assert memory.gib - before > 150 * MIB / 2**30


def test_memory_of_child_processes_counts():
    code = f"block = bytearray(b'x') * {150 * MIB}; print('ready', flush=True); input()"
    with PeakMemory(interval=60) as memory:
        before = memory.sample()
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            after = memory.sample()
            child.communicate("\n")
    assert after - before > 140 * MIB / 2**30


def test_the_peak_of_an_earlier_start_is_carried_on_and_never_falls():
    with PeakMemory(start=1000.0) as memory:
        assert memory.sample() == 1000.0
    assert memory.gib == 1000.0
