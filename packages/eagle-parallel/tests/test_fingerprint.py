"""The record of a rank's collectives, and the mismatches that comparing the records of all ranks finds."""

import pytest
import torch
import torch.distributed as dist
from eagle_parallel.testing import Collective, check_collectives, record_collectives, run_ranks


def talk():
    rank, pair = dist.get_rank(), dist.new_group([0, 1])
    last = dist.new_group([2])
    with record_collectives() as calls:
        here = pair if rank < 2 else last
        dist.all_reduce(torch.ones(3, dtype=torch.float64))
        dist.all_gather([torch.empty(2) for _ in range(2 if rank < 2 else 1)], torch.ones(2), group=here)
        if rank < 2:
            splits = [1, 2] if rank == 0 else [3, 1]
            arriving = [1, 3] if rank == 0 else [2, 1]
            sent = torch.ones(sum(splits), 4, requires_grad=True)
            dist.all_to_all_single(torch.empty(sum(arriving), 4), sent.detach(), arriving, splits, group=pair)
            operations = [
                dist.P2POp(dist.isend, torch.ones(5), 1 - rank),
                dist.P2POp(dist.irecv, torch.ones(5), 1 - rank),
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()

            class Reduced(torch.autograd.Function):
                @staticmethod
                def forward(ctx, tensor):
                    return tensor.clone()

                @staticmethod
                def backward(ctx, *grads):
                    dist.all_reduce(grads[0], group=pair)
                    return grads[0]

            Reduced.apply(sent[:1]).sum().backward()
    dist.barrier()
    return calls


def test_every_collective_is_recorded_with_its_group_also_in_a_backward_pass():
    records = run_ranks(__file__, "talk", (3,))[3]
    assert records[1] == [
        ("allreduce_", (0, 1, 2), (3,), "torch.float64", None),
        ("allgather_", (0, 1), (2,), "torch.float32", None),
        ("alltoall_base_", (0, 1), (3, 4), "torch.float32", None),
        ("send", (0, 1, 2), (5,), "torch.float32", 0),
        ("recv_", (0, 1, 2), (5,), "torch.float32", 0),
        ("allreduce_", (0, 1), (1, 4), "torch.float32", None),
    ]
    assert [call.group for call in records[2]] == [(0, 1, 2), (2,)]
    # Uneven rows of the all-to-all are allowed; a rank that left out its turn is not.
    check_collectives([[call for call in record if len(call.group) == 2] for record in records[:2]])
    with pytest.raises(AssertionError, match="rank 2 issues"):
        check_collectives(records)


def call(name="allreduce_", shape=(3,), dtype="torch.float32", peer=None):
    return Collective(name, (0, 1), shape, dtype, peer)


@pytest.mark.parametrize(
    ("match", "one", "two"),
    [
        ("at call 0: rank 0 issues .*allreduce_.*rank 1 issues .*allgather_", [call()], [call("allgather_")]),
        ("at call 1", [call(), call(shape=(4,))], [call(), call(shape=(5,))]),
        ("float64", [call()], [call(dtype="torch.float64")]),
        ("rank 0 issues 2, rank 1 issues 1", [call(), call()], [call()]),
        ("rank 0 issues 1, rank 1 issues 0", [call()], []),
        ("rank 0 sends .* to rank 1, which receives \\[\\]", [call("send", peer=1)], []),
        (
            "rank 0 sends",
            [call("send", peer=1)],
            [call("recv_", shape=(2,), peer=0)],
        ),
    ],
)
def test_ranks_that_do_not_match_are_named_with_the_call(match, one, two):
    check_collectives([one, one] if one[0].peer is None else [[], []])
    with pytest.raises(AssertionError, match=match):
        check_collectives([one, two])


def test_groups_of_one_size_must_come_in_one_order():
    first, second = Collective("allreduce_", (0, 1), (1,), "f"), Collective("allgather_", (2, 3), (1,), "f")
    with pytest.raises(AssertionError, match="rank 2 issues"):
        check_collectives([[first], [first], [second], [second]])
