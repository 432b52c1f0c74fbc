"""shard_batch: cut by key, inverse to putting shares back, loud about what it cannot cut."""

from itertools import accumulate

import pytest
import torch
from eagle_parallel import gather, make_plan, shard_batch
from hypothesis import given, settings
from hypothesis import strategies as st


def _batch(tokens, supervised):
    return {
        "input_ids": torch.arange(tokens)[None],
        "position_ids": torch.arange(3 * tokens).reshape(3, 1, tokens),
        "shift_labels": torch.arange(tokens)[None].where(supervised, -100),
        "loss_weight": torch.rand(tokens),
        "inputs_embeds": torch.randn(1, tokens, 4),
        "loss_rows": supervised.nonzero().squeeze(-1),
        "cu_seqlens": torch.tensor([0, tokens]),
        "use_cache": False,
        "attention_mask": None,
    }


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5), ranks=st.integers(1, 5), seed=st.integers(0, 99))
def test_shares_put_back_in_plan_order_are_the_batch(lengths, ranks, seed):
    tokens = sum(lengths)
    supervised = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    batch, plan = _batch(tokens, supervised), make_plan([0, *accumulate(lengths)], ranks, layout="zigzag")
    shards = [shard_batch(batch, plan, rank) for rank in range(ranks)]
    order = torch.cat([plan.local_index(rank) for rank in range(ranks)]).argsort()
    for key, dim in (("input_ids", -1), ("position_ids", -1), ("shift_labels", -1), ("loss_weight", -1), ("inputs_embeds", -2)):
        assert torch.equal(torch.cat([shard[key] for shard in shards], dim).index_select(dim, order), batch[key])
    for shard in shards:
        assert list(shard) == list(batch)
        assert torch.equal(shard["loss_rows"], (shard["shift_labels"][0] != -100).nonzero().squeeze(-1))
        assert shard["cu_seqlens"] is batch["cu_seqlens"]
        assert shard["use_cache"] is False


def test_one_rank_gets_the_batch_itself_with_pixels_and_labels():
    batch = {"input_ids": torch.arange(6)[None], "pixel_values": torch.zeros(1, 3, 2, 2), "labels": torch.arange(6)[None]}
    shard = shard_batch(batch, make_plan([0, 6], 1), 0)
    assert list(shard) == list(batch)
    assert all(shard[key] is batch[key] for key in batch)


def test_gather_on_one_process_is_the_tensor_itself():
    rows = torch.randn(6, 2)
    assert gather(rows, make_plan([0, 6], 1)) is rows


def test_another_key_is_cut_where_token_dims_says():
    plan = make_plan([0, 6], 2)
    shard = shard_batch({"scores": torch.arange(12).reshape(6, 2)}, plan, 0, token_dims={"scores": 0})
    assert shard["scores"].tolist() == [[2 * i, 2 * i + 1] for i in plan.local_index(0).tolist()]


@pytest.mark.parametrize(
    ("error", "match", "batch"),
    [
        (ValueError, "pixel_values goes by tiles.*local_units.*scatter_vision", {"pixel_values": torch.zeros(6, 3, 2, 2)}),
        (ValueError, "image_flags goes by tiles", {"image_flags": torch.ones(6)}),
        (ValueError, "labels cannot be sharded: a shift would cross the cut; pass shift_labels", {"labels": torch.zeros(1, 6)}),
        (ValueError, "attention_mask cannot be sharded", {"attention_mask": torch.ones(1, 6)}),
        (ValueError, "no rule says how to shard the tensor 'scores'", {"scores": torch.zeros(6)}),
        (
            ValueError,
            r"input_ids has shape \[1, 5\]; dimension -1 should hold the plan's 6 tokens",
            {"input_ids": torch.zeros(1, 5)},
        ),
        (ValueError, "a pack has a batch dimension of 1", {"input_ids": torch.zeros(2, 6)}),
        (ValueError, "loss_rows holds rows from 2 to 6", {"loss_rows": torch.tensor([2, 6])}),
    ],
)
def test_what_cannot_be_cut_rightly_is_an_error_with_the_mend(error, match, batch):
    with pytest.raises(error, match=match):
        shard_batch(batch, make_plan([0, 6], 2), 0)


def test_a_global_rank_in_place_of_a_context_parallel_rank_is_refused():
    with pytest.raises(ValueError, match="rank 3 is not a context-parallel rank"):
        shard_batch({}, make_plan([0, 6], 2), 3)


def test_gathering_over_ranks_without_a_mesh_is_refused():
    with pytest.raises(ValueError, match="2 context-parallel ranks; pass the mesh"):
        gather(torch.zeros(3), make_plan([0, 6], 2))
