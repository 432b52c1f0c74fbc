"""Packed columns: every array of int64 comes back, and what was not packed so is an error."""

from __future__ import annotations

import numpy as np
import pytest
from eagle_data.media.packed_numbers import pack, unpack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

WHOLE = st.one_of(st.integers(-200, 200), st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 63), (1 << 63) - 1))


@given(arrays(np.int64, st.integers(1, 40), elements=WHOLE), st.binary(max_size=5), st.binary(max_size=5))
def test_packed_numbers_come_back_from_the_middle_of_other_bytes(numbers: np.ndarray, before: bytes, after: bytes):
    kind, data = pack(numbers)
    given, end = unpack(kind, len(numbers), before + data + after, len(before))
    assert given.dtype == np.int64
    assert np.array_equal(given, numbers)
    assert end == len(before) + len(data)


@given(st.integers(-(1 << 62), 1 << 62), st.lists(st.integers(-128, 127), max_size=30))
def test_small_steps_take_a_byte_each(first: int, steps: list[int]):
    numbers = np.cumsum([first, *steps], dtype=np.int64)
    kind, data = pack(numbers)
    assert (kind, len(data)) == ("<i1", 8 + len(steps))


@pytest.mark.parametrize(("kind", "count"), [("<i1", 5), ("<i2", 3), ("<f8", 2), ("|O", 2), ("<i1", 0), ("<i1", -4)])
def test_what_was_not_packed_so_is_a_value_error(kind: str, count: int):
    _, data = pack(np.arange(4))
    with pytest.raises(ValueError, match=r"buffer|numbers of kind"):
        unpack(kind, count, data, 0)
