"""Chunks of rows for matrix products: every row once, never too many, and waves of tiles that are full."""

from eagle_kernels.ops.products import chunks, wave_chunks
from hypothesis import given
from hypothesis import strategies as st

ROWS, MOST = st.integers(0, 100_000), st.integers(1, 9000)


@given(ROWS, MOST, st.integers(1, 9000), st.integers(1, 200))
def test_chunks_hold_every_row_once_and_never_more_than_asked(rows, most, columns, multiprocessors):
    for plan in (list(chunks(rows, most)), list(wave_chunks(rows, most, columns, multiprocessors))):
        assert [begin for begin, _ in plan] == [0, *(end for _, end in plan)][: len(plan)]
        assert (plan[-1][1] if plan else 0) == rows
        assert all(0 < end - begin <= most for begin, end in plan)


def test_a_chunk_fills_its_waves_and_the_end_is_no_splinter():
    """3584 rows by 3584 columns are 28 x 14 tiles, 392 of the 396 of three waves on 132 multiprocessors; 4096 are 448 of 528."""
    sizes = [end - begin for begin, end in wave_chunks(32768, 4096, 3584, 132)]
    assert sizes == [3584] * 8 + [4096]
    assert min(end - begin for begin, end in wave_chunks(4097, 4096, 3584, 132)) > 1024
