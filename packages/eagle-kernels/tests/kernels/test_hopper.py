"""What a machine without a GPU can know of one: every kernel compiles for Hopper and fits its shared memory and registers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SHARED_MEMORY = 232448
"""Bytes that one program may use on an H100 or H200."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests run the kernels themselves")
def test_kernels_compile_for_hopper_at_real_widths_and_fit_it():
    script = Path(__file__).with_name("compile_for_hopper.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    modules = {kernel["kernel"].partition(".")[0] for kernel in kernels}
    assert modules == {"rms_norm", "layer_norm", "cross_entropy", "rope", "gated_unit", "bias_gelu"}
    assert [kernel for kernel in kernels if kernel["shared"] > SHARED_MEMORY] == []
    # Local memory is slow: only rows that no register file holds may spill, and sines of far positions need a few bytes.
    spilling = [kernel for kernel in kernels if kernel["stack"] > 64 and kernel["columns"] not in (18944, 65536)]
    assert spilling == []
    # One program a multiprocessor keeps the rows in flight inside the L2 cache between the two passes over them.
    assert all(k["registers"] > 32 and k["warps"] == 32 for k in kernels if k["kernel"] == "cross_entropy._row_loss")
