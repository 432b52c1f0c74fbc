"""Rows summed by table: against sums one by one, on a CPU and with the kernel under Triton's interpreter (its own process)."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from eagle_parallel.attention.row_sum import RowSum
from hypothesis import given
from hypothesis import strategies as st

HALVES = ("K", "V")


def one_by_one(pairs, rows, first, second, dtype):
    """The sums in the order given, in float32 or wider, rounded once."""
    wide = torch.promote_types(dtype, torch.float32)
    total = torch.zeros(rows, *first.shape[1:], dtype=wide)
    source = torch.cat((first, second)).to(wide)
    for target, row in pairs:
        total[target] += source[row]
    return total.to(dtype)


def check(into, dtype, pairs=((0, 0), (2, 5), (2, 1), (2, 8), (4, 7), (5, 0), (0, 3)), rows=7, heads=3, head_dim=8):
    """Sum rows of views into views of larger tensors; what lies around them stays as it is."""
    firsts, seconds = (torch.randn(2, count, heads + 1, head_dim, dtype=dtype)[:, :, 1:] for count in (5, 4))
    room = torch.full((2, rows, heads + 2, head_dim), 7.0, dtype=dtype)
    inner = room[:, :, 1:-1]
    targets, sources = (torch.tensor([pair[place] for pair in pairs], dtype=torch.int64) for place in range(2))
    table = RowSum.of(targets, sources, rows, 5, "cpu")
    into(table, (inner[0], inner[1]), (firsts[0], firsts[1]), (seconds[0], seconds[1]))
    for place, half in enumerate(HALVES):
        expected = one_by_one(pairs, rows, firsts[place], seconds[place], dtype)
        assert torch.equal(inner[place], expected), half
    assert (room[:, :, 0] == 7).all()
    assert (room[:, :, -1] == 7).all()


def plain(table, target, first, second):
    table.into(target, first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=20))
def test_every_row_is_the_sum_of_its_sources_in_order_rounded_once(dtype, pairs):
    check(plain, dtype, pairs)


def test_a_source_that_a_row_does_not_name_cannot_reach_it():
    table = RowSum.of(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1]), 2, 3, "cpu")
    source = torch.tensor([float("nan"), 1.0, 2.0])[:, None, None]
    found = torch.empty(2, 2, 1, 1)
    table.into((found[0], found[1]), (source, source))
    assert found[0].flatten().tolist() == [3, 1]


def test_without_sources_rows_are_zero_and_without_rows_nothing_happens():
    none = torch.empty(0, dtype=torch.int64)
    found, nothing = torch.full((2, 3, 1, 4), 7.0), torch.empty(0, 1, 4)
    RowSum.of(none, none, 3, 0, "cpu").into((found[0], found[1]), (nothing, nothing))
    assert (found == 0).all()
    RowSum.of(none, none, 0, 3, "cpu").into((nothing, nothing), (found[0], found[1]))


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_gives_the_sums_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "summed"


if __name__ == "__main__":
    from eagle_parallel.attention.row_sum_kernel import launch

    def fused(table, target, first, second):
        launch(table.table, table.first_rows, target, first, second)

    for heads in (1, 3, 5):
        check(fused, torch.float32, heads=heads)
        check(fused, torch.float32, heads=heads, pairs=(), rows=2)
        check(fused, torch.float32, heads=heads, pairs=tuple((row, row % 9) for row in range(700)), rows=700)
    print("summed")
