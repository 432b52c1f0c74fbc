import math
from itertools import pairwise

from eagle_train.schedule import learning_rate
from hypothesis import given
from hypothesis import strategies as st

SHAPES = st.tuples(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))


@given(SHAPES, st.floats(1e-6, 1.0))
def test_the_rate_is_positive_or_at_the_floor_and_never_above_the_peak(shape: tuple[int, float, float], peak: float):
    steps, warmup, floor = shape
    for step in range(steps):
        rate = learning_rate(step, steps=steps, peak=peak, warmup=warmup, floor=floor)
        assert 0 <= rate <= peak * (1 + 1e-12)


@given(SHAPES)
def test_the_rate_rises_during_warm_up_and_falls_afterwards(shape: tuple[int, float, float]):
    steps, warmup, floor = shape
    rates = [learning_rate(step, steps=steps, peak=1.0, warmup=warmup, floor=floor) for step in range(steps)]
    rising = max(1, round(warmup * steps))
    assert all(a < b for a, b in pairwise(rates[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[rising:]))


def test_half_way_through_the_cosine_the_rate_is_the_mean_of_peak_and_floor():
    rate = learning_rate(60, steps=110, peak=2.0, warmup=10 / 110, floor=0.1)
    assert math.isclose(rate, 2.0 * (1 + 0.1) / 2)
