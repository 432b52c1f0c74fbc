"""The fused merge against the plain one, with Triton's interpreter in a process of its own, and without triton."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from eagle_parallel import merge_attention
from eagle_parallel.kernels.fused_merge import TOKENS, merge_into


def check(merge, dtype=torch.float32):
    """Merge into views of larger tensors, from views, and compare."""
    for tokens, heads, head_dim in ((1, 1, 8), (37, 3, 24), (16, 2, 128)):
        first, second = (torch.randn(heads, tokens, head_dim, dtype=dtype).transpose(0, 1) for _ in range(2))
        lse_first, lse_second = (torch.randn(heads, tokens + 2, dtype=dtype)[:, 1:-1] * 30 for _ in range(2))
        room = torch.full((tokens + 4, heads, head_dim), 7.0, dtype=dtype)
        room_lse = torch.full((heads, tokens + 4), 7.0, dtype=dtype)
        merge(room[2:-2], room_lse[:, 2:-2], first, lse_first, second, lse_second)
        expected = merge_attention(first, lse_first, second, lse_second)
        torch.testing.assert_close((room[2:-2], room_lse[:, 2:-2]), expected, rtol=2e-6, atol=2e-6)
        for untouched in (room[:2], room[-2:], room_lse[:, :2], room_lse[:, -2:]):
            assert (untouched == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_cpu_the_merge_is_the_plain_one_written_in_place(dtype):
    check(merge_into, dtype)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_gives_the_merge_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "merged"


if __name__ == "__main__":
    from eagle_parallel.kernels.merge_kernel import launch

    check(partial(launch, tokens=TOKENS))
    print("merged")
