"""Frame choice against the released tables (upstream A.2), and the laws every policy keeps."""

from __future__ import annotations

import numpy as np
import pytest
from eagle_data.errors import EagleDataError
from eagle_data.sampling import FrameChoice, released_policy, training_policy, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

# total, video fps -> n, printed fps, first indices, last index, printed last second
RELEASED = [
    (300, 30.0, 20, "2.00", (0, 16, 31, 47), 299, "9.97"),
    (9000, 30.0, 256, "0.85", (0, 35, 71, 106), 8999, "299.97"),
    (54000, 30.0, 256, "0.14", (0, 212, 424, 635), 53999, "1799.97"),
    (75, 25.0, 6, "2.00", (0, 15, 30, 44), 74, "2.96"),
    (1000, 23.976, 82, "1.97", (0, 12, 25, 37), 999, "41.67"),
    (3, 30.0, 2, "20.00", (0, 2), 2, "0.07"),
]
TRAINING = [
    (300, 30.0, 24, "2.40"),
    (9000, 30.0, 24, "0.08"),
    (54000, 30.0, 24, "0.01"),
    (75, 25.0, 12, "4.00"),
    (3, 30.0, 3, "30.00"),
]

totals = st.integers(1, 400_000)
rates = st.sampled_from([1.0, 12.5, 23.976, 25.0, 29.97, 30.0, 60.0, 120.0])


@pytest.mark.parametrize(("total", "rate", "n", "fps", "first", "last", "second"), RELEASED)
def test_released_policy_matches_the_released_table(
    total: int, rate: float, n: int, fps: str, first: tuple[int, ...], last: int, second: str
) -> None:
    choice = released_policy(total, rate)
    assert len(choice) == n
    assert f"{choice.fps:.2f}" == fps
    assert choice.indices[: len(first)] == first
    assert choice.indices[-1] == last
    assert f"{choice.timestamps[-1]:.2f}" == second


def test_released_policy_prints_the_seconds_of_the_documented_prompt() -> None:
    seconds = [f"{t:.2f}" for t in released_policy(300, 30.0).timestamps]
    assert seconds[:3] == ["0.00", "0.53", "1.03"]
    assert seconds[-1] == "9.97"


def test_released_timestamps_are_rounded_to_float32_before_printing() -> None:
    # Frame 3 at 40 fps lies at 0.075 s, which float64 holds a little below and float32 a little above.
    choice = released_policy(4, 40.0, nframes=2)
    assert choice.timestamps[1] == float(np.float32(3 / 40))
    assert (f"{choice.timestamps[1]:.2f}", f"{3 / 40:.2f}") == ("0.08", "0.07")


@pytest.mark.parametrize(("total", "rate", "n", "fps"), TRAINING)
def test_training_policy_matches_the_released_table(total: int, rate: float, n: int, fps: str) -> None:
    choice = training_policy(total, rate, fps=4.0, min_frames=8, max_frames=24)
    assert len(choice) == n
    assert f"{choice.fps:.2f}" == fps


def assert_spread(choice: FrameChoice, total: int) -> None:
    assert len(choice.indices) == len(choice.timestamps)
    assert all(a < b for a, b in zip(choice.indices, choice.indices[1:], strict=False))
    assert 0 <= choice.indices[0] <= choice.indices[-1] < total
    if len(choice) > 1:
        assert (choice.indices[0], choice.indices[-1]) == (0, total - 1)


@given(total=st.integers(2, 400_000), rate=rates, fps=st.floats(0.05, 60), low=st.integers(1, 40), extra=st.integers(0, 400))
@settings(deadline=None, max_examples=150)
def test_released_policy_gives_even_ascending_frames_within_its_bounds(
    total: int, rate: float, fps: float, low: int, extra: int
) -> None:
    high = low + extra
    if high < 2:
        return
    choice = released_policy(total, rate, fps=fps, min_frames=low, max_frames=high)
    assert len(choice) % 2 == 0
    assert 2 <= len(choice) <= min(high, total)
    assert len(choice) >= min(low, total - 1, high - 1)
    assert_spread(choice, total)


@given(total=totals, rate=rates, fps=st.floats(0.05, 60), low=st.integers(1, 40), extra=st.integers(0, 400))
@settings(deadline=None, max_examples=100)
def test_training_policy_gives_ascending_frames_within_its_bounds(
    total: int, rate: float, fps: float, low: int, extra: int
) -> None:
    choice = training_policy(total, rate, fps=fps, min_frames=low, max_frames=low + extra)
    assert min(total, low) <= len(choice) <= low + extra
    assert_spread(choice, total)


@given(total=totals, rate=rates, data=st.data())
@settings(deadline=None, max_examples=100)
def test_uniform_gives_exactly_n_ascending_frames_and_their_rate(total: int, rate: float, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, min(total, 2000)))
    choice = uniform(total, rate, n, start=3.0)
    assert len(choice) == n
    assert choice.fps == pytest.approx(n / (total / rate))
    assert choice.timestamps == tuple(3.0 + i / rate for i in choice.indices)
    assert_spread(choice, total)


def test_one_uniform_frame_is_the_middle_one() -> None:
    assert uniform(9, 30.0, 1).indices == (4,)
    assert uniform(1, 30.0, 1).indices == (0,)


def test_an_explicit_number_of_frames_is_rounded_to_even_and_overrides_the_bounds() -> None:
    assert len(released_policy(300, 30.0, nframes=31)) == 32
    assert len(released_policy(300, 30.0, nframes=300)) == 300


@pytest.mark.parametrize(("total", "nframes"), [(1, None), (300, 0), (300, 302), (10, 11)])
def test_released_policy_refuses_counts_below_two_or_beyond_the_video(total: int, nframes: int | None) -> None:
    with pytest.raises(ValueError, match="from 2 to the video's length"):
        released_policy(total, 30.0, nframes=nframes)


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(EagleDataError, match="video_fps"):
        uniform(10, 0.0, 2)
    with pytest.raises(EagleDataError, match="total_frames"):
        uniform(0, 30.0, 2)
    with pytest.raises(EagleDataError, match="ask for 1 to 10"):
        uniform(10, 30.0, 11)
    with pytest.raises(EagleDataError, match="min_frames"):
        training_policy(10, 30.0, fps=2, min_frames=5, max_frames=4)
