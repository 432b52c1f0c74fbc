"""Ranks that are threads give what one process gives, on any device: the ground on which the tests on a GPU stand."""

from importlib import import_module

import pytest
import torch
from eagle_parallel import make_plan, varlen_attention

thread_ranks = import_module("parallel_bench.thread_ranks")
wire = import_module("parallel_bench.wire")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (37, 1, 64, 5, 130)


def _inputs(heads=(14, 2), dtype=torch.float64, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    counts = (heads[0], heads[1], heads[1], heads[0])
    return [torch.randn(sum(lengths), count, 8, generator=generator, dtype=dtype).to(DEVICE) for count in counts]


def _borders(lengths):
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def _truth(q, k, v, grad_out, lengths=LENGTHS):
    q, k, v = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    out, _ = varlen_attention(q, k, v, _borders(lengths))
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad_out)]


@pytest.fixture
def by_hand():
    with thread_ranks.hand_driven():
        yield


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(
    ("ring", "ulysses", "algorithm"),
    [
        *((2, 1, "gather_kv"), (4, 1, "gather_kv"), (1, 2, "gather_kv"), (2, 2, "gather_kv")),
        *((2, 1, "ring"), (4, 1, "ring"), (2, 2, "ring")),
    ],
)
def test_thread_ranks_give_the_truth_in_float64(ring, ulysses, algorithm):
    tensors = _inputs()
    plan = make_plan(_borders(LENGTHS), (ring, ulysses))
    options = {"algorithm": algorithm, "kernel": "truth", "head_groups": 2}
    found, _ = thread_ranks.attention_of_ranks(tensors, plan, **options)
    torch.testing.assert_close(found, _truth(*tensors), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(("ring", "ulysses", "algorithm"), [(2, 1, "gather_kv"), (2, 2, "gather_kv"), (4, 1, "ring")])
def test_a_rank_alone_with_its_log_repeats_what_it_did_among_the_others(ring, ulysses, algorithm):
    tensors = _inputs()
    plan = make_plan(_borders(LENGTHS), (ring, ulysses))
    options = {"algorithm": algorithm, "kernel": "truth"}
    expected, logs = thread_ranks.attention_of_ranks(tensors, plan, log=True, **options)
    parts = []
    for rank, (q, k, v, grad_out) in enumerate(thread_ranks.shares(tensors, plan)):
        single = thread_ranks.alone(ring, ulysses, rank, logs[rank])
        single.forward(q, k, v, plan, **options)
        single.backward(grad_out)
        again = single.forward(q, k, v, plan, **options)
        parts.append([again, *single.backward(grad_out)])
    for again, before in zip(thread_ranks.joined(parts, plan), expected, strict=True):
        assert torch.equal(again, before)


def test_a_rank_that_fails_is_named_and_ends_the_others():
    def step(rank):
        if rank.rank == 1:
            raise ValueError("no memory left")
        return rank.groups["cp_ring"].wire.meeting.swap(rank.groups["cp_ring"].rank, None)

    with pytest.raises(RuntimeError, match="rank 1 of 3: ValueError: no memory left"):
        thread_ranks.run_thread_ranks(3, 1, step, seconds=30.0)


def test_after_the_switch_attention_is_as_it_was():
    before = [step.apply for step in thread_ranks._STEPS]
    with thread_ranks.hand_driven():
        assert [step.apply for step in thread_ranks._STEPS] != before
    assert [step.apply for step in thread_ranks._STEPS] == before
    assert import_module("eagle_parallel.comm").dist is torch.distributed


def test_rows_that_do_not_fit_what_was_announced_are_refused():
    def step(rank):
        group = rank.groups["cp_ring"]
        sent = torch.zeros(2)
        group.wire.trade(sent, [1, 1], torch.zeros(3), [2, 1])

    with pytest.raises(RuntimeError, match="expects 2 rows"):
        thread_ranks.run_thread_ranks(2, 1, step, seconds=30.0)


def test_hand_driven_inside_itself_ends_with_the_outer_one():
    gather = thread_ranks.gather_kv._GatherKV
    plain = gather.apply
    with thread_ranks.hand_driven():
        noted = gather.apply
        with thread_ranks.hand_driven():
            assert gather.apply is noted
        assert gather.apply is noted
    assert gather.apply == plain
