"""The loss helper on one process: plain arithmetic, and errors where a mean does not exist."""

import math

import pytest
import torch
from eagle_parallel import global_loss, global_normaliser, init_mesh, normalise_loss
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=40)
@given(
    micro_batches=st.lists(
        st.lists(st.tuples(st.floats(0, 9), st.floats(0.01, 3)), min_size=1, max_size=6), min_size=1, max_size=4
    ),
    divided=st.integers(1, 4),
)
def test_accumulated_losses_come_to_the_weighted_mean_over_all_tokens(micro_batches, divided):
    everything = [pair for batch in micro_batches for pair in batch]
    mean = sum(loss * weight for loss, weight in everything) / sum(weight for _, weight in everything)
    sums = [sum(loss * weight for loss, weight in batch) for batch in micro_batches]
    normaliser = global_normaliser([sum(weight for _, weight in batch) for batch in micro_batches], init_mesh())
    parts = [normalise_loss(torch.tensor(s, dtype=torch.float64), normaliser, accumulation_divided_by=divided) for s in sums]
    assert sum(float(part) for part in parts) / divided == pytest.approx(mean, abs=1e-12)
    assert global_loss(sums, normaliser) == pytest.approx(mean, abs=1e-12)


def test_square_root_weights_give_the_published_normaliser():
    """Appendix A.4: n = [4, 16] has sum of square roots 6 and token weights 1/12 and 1/24."""
    weights = torch.tensor([4.0**-0.5] * 4 + [16.0**-0.5] * 16)
    normaliser = global_normaliser(weights.sum())
    assert normaliser == pytest.approx(6)
    assert [float(normalise_loss(weights[row], normaliser)) for row in (0, 4)] == pytest.approx([1 / 12, 1 / 24])


def test_the_factor_undoes_an_average_over_ranks():
    loss = torch.tensor(3.0, requires_grad=True)
    normalise_loss(loss, 2.0, averaged_over=8).backward()
    assert loss.grad is not None
    assert float(loss.grad) / 8 == pytest.approx(0.5)


@pytest.mark.parametrize("call", [lambda: normalise_loss(torch.tensor(0.0), 0.0), lambda: global_loss(0.0, 0.0)])
def test_a_step_without_a_supervised_token_has_no_mean_and_says_so(call):
    with pytest.raises(ValueError, match="no token of the whole optimiser step is supervised"):
        call()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_weight_sum_that_is_no_weight_sum_is_refused(value):
    with pytest.raises(ValueError, match="local_weight_sum must be finite and not negative"):
        global_normaliser(value)


def test_unknown_groups_and_factors_are_refused():
    with pytest.raises(ValueError, match="group must be 'dp_cp'"):
        global_normaliser(1.0, group="cp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="averaged_over must be at least 1"):
        normalise_loss(torch.tensor(1.0), 1.0, averaged_over=0)
