"""Statistics and errors of the harness: quantiles, spread, turns, relative error in pieces."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

measure = import_module("kernel_bench.measure")
CPU = torch.device("cpu")
TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40)


@given(TIMES, st.floats(0, 1))
def test_a_quantile_is_that_of_torch(times, share):
    expected = torch.quantile(torch.tensor(times, dtype=torch.float64), share).item()
    assert measure.quantile(times, share) == pytest.approx(expected, rel=1e-9)


@given(TIMES, st.floats(0.1, 10))
def test_the_spread_is_relative_so_a_unit_does_not_change_it(times, factor):
    timing, scaled = measure.summarise(times), measure.summarise([time * factor for time in times])
    assert scaled.median_ms == pytest.approx(factor * timing.median_ms)
    assert scaled.spread == pytest.approx(timing.spread, abs=1e-9)
    assert timing.runs == len(times)


def test_the_spread_is_the_interquartile_range_over_the_median():
    assert measure.summarise([1.0, 2.0, 4.0, 5.0, 9.0]) == measure.Timing(4.0, (5.0 - 2.0) / 4.0, 5)


def test_no_times_are_an_error_and_not_a_zero():
    with pytest.raises(ValueError, match="empty"):
        measure.quantile([], 0.5)


def test_calls_take_turns_and_one_that_raises_leaves_the_race():
    order = []

    def broken():
        order.append("broken")
        raise RuntimeError("no kernel image")

    calls = {"first": lambda: order.append("first"), "broken": broken, "last": lambda: order.append("last")}
    timings, errors = measure.take_turns(calls, CPU, measure.Budget(rounds=2, cpu_runs=1))
    assert order == ["first", "first", "broken", "last", "last", "first", "first", "last", "last"]
    assert set(timings) == {"first", "last"}
    assert timings["first"].runs == 2
    assert str(errors["broken"]) == "no kernel image"


@given(st.integers(1, 200), st.integers(1, 64))
def test_the_error_in_pieces_is_the_error_of_the_whole(size, piece):
    generator = torch.Generator().manual_seed(size)
    truth, result = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = ((result - truth).norm() / truth.norm()).item()
    assert measure.relative_error(result, truth, piece) == pytest.approx(expected)


def test_a_nan_is_an_infinite_error_and_another_shape_is_refused():
    assert measure.relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        measure.relative_error(torch.ones(2, 1), torch.ones(2))
