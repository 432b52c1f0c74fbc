"""Plans: every token owned once, equal shares, balanced causal work, at any document length and any number of ranks."""

from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from eagle_parallel import Mesh, ModelShape, make_plan
from hypothesis import given, settings
from hypothesis import strategies as st

documents = st.lists(st.integers(0, 60), min_size=1, max_size=8)
rings = st.integers(1, 9)


def _borders(lengths):
    return [0, *accumulate(lengths)]


@settings(deadline=None, max_examples=100)
@given(lengths=documents, ring=rings, ulysses=st.integers(1, 4), layout=st.sampled_from(["zigzag", "contiguous"]))
def test_every_token_is_owned_once_and_shares_differ_by_at_most_one(lengths, ring, ulysses, layout):
    plan = make_plan(_borders(lengths), (ring, ulysses), layout=layout)
    owned = torch.cat([plan.local_index(rank) for rank in range(plan.cp)])
    assert sorted(owned.tolist()) == list(range(sum(lengths)))
    shares = [plan.local_tokens(rank) for rank in range(plan.cp)]
    assert max(shares) - min(shares) <= 1
    for rank in range(plan.cp):
        index = plan.local_index(rank)
        assert index.numel() == shares[rank]
        assert index.tolist() == sorted(index.tolist())


@settings(deadline=None, max_examples=100)
@given(lengths=documents, ranks=rings)
def test_zigzag_work_stays_within_two_pairs_a_token_of_the_mean(lengths, ranks):
    plan = make_plan(_borders(lengths), ranks, layout="zigzag")
    work = [plan.causal_work(rank) for rank in range(ranks)]
    total = sum(length * (length + 1) // 2 for length in lengths)
    assert sum(work) == total
    assert max(abs(each - Fraction(total, ranks)) for each in work) <= 2 * sum(lengths)


@settings(deadline=None, max_examples=30)
@given(chunk=st.integers(1, 20), ranks=rings)
def test_zigzag_work_is_exactly_equal_when_the_chunks_are(chunk, ranks):
    plan = make_plan([0, 2 * ranks * chunk], ranks, layout="zigzag")
    assert len({plan.causal_work(rank) for rank in range(ranks)}) == 1


def test_zigzag_deals_mirrored_chunks_and_contiguous_runs():
    """Appendix A.7: rank r holds chunks r and 2W - 1 - r of 2W."""
    zigzag = make_plan([0, 16], 4, layout="zigzag")
    assert [zigzag.local_index(rank).tolist() for rank in range(4)] == [
        [0, 1, 14, 15], [2, 3, 12, 13], [4, 5, 10, 11], [6, 7, 8, 9],
    ]  # fmt: skip
    contiguous = make_plan([0, 16], 4, layout="contiguous")
    assert [contiguous.local_index(rank).tolist() for rank in range(4)] == [list(range(4 * r, 4 * r + 4)) for r in range(4)]


def test_contiguous_work_grows_with_the_rank_as_one_three_five_seven():
    plan = make_plan([0, 4000], 4, layout="contiguous")
    first = plan.causal_work(0)
    assert [round(plan.causal_work(rank) / first) for rank in range(4)] == [1, 3, 5, 7]


def test_ulysses_ranks_split_the_share_of_their_ring_rank_in_order():
    ring = make_plan([0, 40, 57], 2, layout="zigzag")
    both = make_plan([0, 40, 57], (2, 3), layout="zigzag")
    for rank in range(2):
        parts = [both.local_index(3 * rank + inner) for inner in range(3)]
        assert torch.equal(torch.cat(parts), ring.local_index(rank))


def test_the_cost_model_chooses_the_layout_unless_one_is_asked_for():
    long, short = make_plan([0, 65536], 2), make_plan(_borders([300] * 64), 2)
    assert (long.layout, short.layout) == ("zigzag", "balanced")
    assert "predicted" in long.why
    assert "predicted" in short.why
    assert make_plan(_borders([300] * 64), 2, layout="zigzag").why == "asked for"


@settings(deadline=None, max_examples=50)
@given(lengths=documents, ring=rings, ulysses=st.integers(1, 4))
def test_the_default_plan_owns_every_token_once_on_any_mesh(lengths, ring, ulysses):
    plan = make_plan(_borders(lengths), (ring, ulysses))
    owned = torch.cat([plan.local_index(rank) for rank in range(plan.cp)])
    assert sorted(owned.tolist()) == list(range(sum(lengths)))


def test_a_plan_is_a_value_that_does_not_depend_on_how_the_borders_came():
    from_list = make_plan([0, 5, 9], 2)
    from_tensor = make_plan(torch.tensor([0, 5, 9], dtype=torch.int32), Mesh(3, 2, 1, rank=4))
    assert from_list == from_tensor
    assert hash(from_list) == hash(from_tensor)


@pytest.mark.parametrize(
    ("error", "match", "cu_seqlens", "mesh", "options"),
    [
        (ValueError, "cu_seqlens must be 0 followed", [1, 4], 2, {}),
        (ValueError, "cu_seqlens must be 0 followed", [0], 2, {}),
        (ValueError, "cu_seqlens decreases from 7 to 4 at entry 2", [0, 7, 4], 2, {}),
        (ValueError, "cu_seqlens must be a one-dimensional integer tensor", torch.zeros(1, 2), 2, {}),
        (ValueError, "cu_seqlens is on meta", torch.zeros(2, dtype=torch.int32, device="meta"), 2, {}),
        (ValueError, "mesh sizes must be positive", [0, 4], 0, {}),
        (TypeError, "mesh must be a Mesh", [0, 4], "2", {}),
        (
            ValueError,
            "layout 'stripe' is unknown; use one of zigzag, contiguous, balanced, auto",
            [0, 4],
            2,
            {"layout": "stripe"},
        ),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, cu_seqlens, mesh, options):
    with pytest.raises(error, match=match):
        make_plan(cu_seqlens, mesh, **options)


def test_a_rank_outside_the_plan_is_an_error_that_says_which_rank_is_meant():
    with pytest.raises(ValueError, match=r"rank 2 is not a context-parallel rank.*pass mesh\.cp_rank"):
        make_plan([0, 4], 2).local_index(2)


def test_a_model_shape_with_ungrouped_heads_is_refused():
    with pytest.raises(ValueError, match="query_heads=7 is not a multiple of kv_heads=2"):
        ModelShape(query_heads=7, kv_heads=2, head_dim=8)
