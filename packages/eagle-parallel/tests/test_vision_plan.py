"""The vision plan: every unit has one owner, shares are even, a video stays on few ranks; and the route between two ranks."""

from itertools import accumulate, pairwise

import pytest
import torch
from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import make_plan
from eagle_parallel.vision import make_route
from eagle_parallel.vision_plan import make_vision_plan, tower_cost
from hypothesis import given, settings
from hypothesis import strategies as st


def mask_of(tokens, runs):
    mask = torch.zeros(tokens, dtype=torch.bool)
    for start, end in runs:
        mask[start:end] = True
    return mask


def equal_units(units, each=3):
    return make_vision_plan([True] * (units * each), [each] * units, 4)


@settings(deadline=None, max_examples=200)
@given(costs=st.lists(st.integers(0, 50), max_size=60), ranks=st.integers(1, 9))
def test_every_unit_has_one_owner_and_the_busiest_rank_is_within_one_unit_of_the_mean(costs, ranks):
    plan = make_vision_plan([], [0] * len(costs), ranks, costs=costs)
    dealt = [plan.own_units(rank) for rank in range(ranks)]
    assert sorted(unit for units in dealt for unit in units) == list(range(len(costs)))
    for unit in range(len(costs)):
        assert [rank for rank in range(ranks) if plan.loads(unit, rank)] == [plan.owner(unit)]
    busiest = max(sum(costs[unit] for unit in units) for units in dealt)
    assert busiest <= sum(costs) / ranks + max(costs, default=0)
    if sum(costs):
        assert plan.imbalance == pytest.approx(busiest * ranks / sum(costs))


@settings(deadline=None, max_examples=200)
@given(units=st.integers(0, 300), ranks=st.integers(1, 9))
def test_equal_units_are_shared_within_one_in_consecutive_runs(units, ranks):
    plan = make_vision_plan([True] * (2 * units), [2] * units, ranks)
    counts = [len(plan.own_units(rank)) for rank in range(ranks)]
    assert max(counts, default=0) - min(counts, default=0) <= 1
    assert list(plan.owners) == sorted(plan.owners)
    if units >= 8 * ranks:
        assert plan.imbalance <= 1 + ranks / units


@settings(deadline=None, max_examples=100)
@given(costs=st.lists(st.integers(1, 9), min_size=1, max_size=9), ranks=st.integers(1, 4))
def test_runs_are_given_up_only_for_a_better_balance(costs, ranks):
    """Every way to cut into runs is tried; where the plan is not made of runs, it beats all of them."""
    plan = make_vision_plan([], [0] * len(costs), ranks, costs=costs)
    busiest = max(sum(costs[unit] for unit in plan.own_units(rank)) for rank in range(ranks))
    cuts = [[0, *inner, len(costs)] for inner in _cuts(len(costs), ranks - 1)]
    best = min(max(sum(costs[low:high]) for low, high in pairwise(cut)) for cut in cuts)
    owners = list(plan.owners)
    is_runs = sum(one != two for one, two in pairwise(owners)) == len(set(owners)) - 1
    assert busiest == best if is_runs else busiest < best


def _cuts(length, count, low=0):
    if not count:
        return [[]]
    return [[cut, *rest] for cut in range(low, length + 1) for rest in _cuts(length, count - 1, cut)]


def test_dear_and_cheap_units_are_balanced_where_runs_cannot():
    plan = make_vision_plan([], [0] * 6, 2, costs=[9, 1, 9, 1, 9, 1])
    assert plan.imbalance < 1.3
    alternating = make_vision_plan([], [0] * 4, 2, costs=[10, 1, 1, 10])
    assert alternating.owners == (0, 0, 1, 1)
    assert make_vision_plan([], [0] * 4, 2, costs=[6, 10, 6, 2]).imbalance == 1.0


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    ring=st.integers(1, 3),
    ulysses=st.integers(1, 2),
    layout=st.sampled_from(["zigzag", "contiguous"]),
)
def test_routes_bring_every_row_to_the_owner_of_its_token_exactly_once(data, lengths, ring, ulysses, layout):
    tokens = sum(lengths)
    plan = make_plan([0, *accumulate(lengths)], (ring, ulysses), layout=layout)
    mask = data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    cuts = sorted(data.draw(st.lists(st.integers(0, sum(mask)), max_size=6)))
    vision = make_vision_plan(mask, [high - low for low, high in pairwise([0, *cuts, sum(mask)])], plan.cp)
    routes = [make_route(vision, plan, rank) for rank in range(plan.cp)]
    positions, encoders = vision.positions(), vision.encoders()
    sent = [positions[encoders == rank][route.sent_rows].split(list(route.sent)) for rank, route in enumerate(routes)]
    for rank, route in enumerate(routes):
        arriving = torch.cat([sent[source][rank] for source in range(plan.cp)])
        assert list(route.received) == [len(sent[source][rank]) for source in range(plan.cp)]
        assert torch.equal(plan.local_index(rank)[route.local_rows], arriving)
        own = plan.local_index(rank)
        assert sorted(arriving.tolist()) == own[torch.tensor(mask)[own]].tolist()


def test_a_units_rows_follow_the_placeholders_in_pack_order():
    plan = make_vision_plan(mask_of(12, [(1, 5), (8, 10)])[None], [2, 3, 1], Mesh(1, 2, 1, rank=0), costs=[5, 1, 4])
    assert plan.runs == ((1, 5), (8, 10))
    assert plan.positions().tolist() == [1, 2, 3, 4, 8, 9]
    assert plan.owners == (0, 1, 1)
    assert plan.encoders().tolist() == [0, 0, 1, 1, 1, 1]
    assert (plan.tokens, plan.own_tokens(0), plan.own_tokens(1)) == (6, 2, 4)


def test_the_cost_of_a_tower_grows_faster_than_its_patches():
    assert tower_cost(2048, 1152) > 2 * tower_cost(1024, 1152)
    assert tower_cost(1024, 1152) == 1024 * (1024 + 6 * 1152)


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("2 placeholder tokens but its 1 units fill 3; make both from the same samples", ([True, True], [3], 2)),
        ("costs has 1 entries but unit_tokens has 2", ([True, True], [1, 1], 2, [4])),
        ("costs holds -4", ([True, True], [1, 1], 2, [4, -4])),
        ("placeholders must be bool", (torch.tensor([3, 7]), [2], 2)),
        ("placeholders must be bool", (torch.ones(2, 2, dtype=torch.bool), [4], 2)),
        ("positive number of ranks", ([True], [1], 0)),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_mend(match, arguments):
    placeholders, unit_tokens, mesh, *costs = arguments
    with pytest.raises(ValueError, match=match):
        make_vision_plan(placeholders, unit_tokens, mesh, costs=costs[0] if costs else None)


def test_units_stay_with_the_rank_that_has_their_pixels_after_a_sample_was_dropped():
    whole = make_vision_plan([True] * 6, [1] * 6, 2)
    assert whole.owners == (0, 0, 0, 1, 1, 1)
    rest = make_vision_plan([False, True, True, True, True], [1] * 4, 2, owners=whole.owners[2:])
    assert (rest.owners, rest.own_units(1), rest.runs) == ((0, 1, 1, 1), (1, 2, 3), ((1, 5),))
    for owners in ((0, 1, 1), (0, 1, 1, 2), (0, 1, 1, -1)):
        with pytest.raises(ValueError, match="owners must give each of the 4 units a rank from 0 to 1"):
            make_vision_plan([True] * 4, [1] * 4, 2, owners=owners)


def test_ranks_and_units_outside_the_plan_are_refused():
    plan = equal_units(5)
    with pytest.raises(ValueError, match="rank 4 is not a context-parallel rank of this plan"):
        plan.loads(0, 4)
    with pytest.raises(IndexError, match="unit 5 is not one of this pack's 5 units"):
        plan.owner(5)
