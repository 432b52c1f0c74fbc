"""What ranks send and compute, simulated in one process with token numbers in place of keys."""

from itertools import accumulate, pairwise

import pytest
import torch
from eagle_parallel import make_plan
from eagle_parallel.attention.call import row_index
from eagle_parallel.attention.schedule import gather_schedule, ring_schedule
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")
LAYOUTS = ("zigzag", "contiguous", "balanced")
packs = st.lists(st.one_of(st.integers(0, 20), st.integers(60, 300)), min_size=1, max_size=6)


def _tokens(plan, ring_rank):
    """Pack positions of a ring rank's rows."""
    return row_index([(plan.cu_seqlens[d] + start, plan.cu_seqlens[d] + end) for d, start, end in plan.ring_pieces(ring_rank)])


def _seen(plan):
    """Pairs (query, keys) of causal attention within documents."""
    return {query: set(range(first, query + 1)) for first, end in pairwise(plan.cu_seqlens) for query in range(first, end)}


def _visible(call, queries, keys):
    """The (query, keys) pairs that a call computes, from its packed rows."""
    return _pairs(call.segments, queries if call.queries is None else queries[call.queries], call.pack(keys))


def _summed(table, rows, *sources):
    """What a table makes of sources of one number a row; K and V are told apart by their sign."""
    pairs = [(source[:, None, None].double(), -source[:, None, None].double()) for source in sources]
    target = torch.full((2, rows, 1, 1), 0.5, dtype=torch.float64)
    table.into((target[0], target[1]), *pairs)
    assert torch.equal(target[0], -target[1])
    return target[0].flatten()


def _sent(schedule, own):
    """For every other rank the rows that go there."""
    return _summed(schedule.keys.send, sum(schedule.sent), own).long().split(list(schedule.sent))


def _packed(schedule, own, received):
    """Packed rows of one number each."""
    return own if schedule.keys.as_they_lie else _summed(schedule.keys.pack, schedule.keys.packed, own, received).long()


def _pairs(segments, rows, packed):
    packed = packed.tolist()
    found = []
    for span in segments.spans():
        for place in range(span.query_end - span.query_start):
            stop = min(span.key_start + span.first_position + place + 1, span.key_end)
            found.append((int(rows[span.query_start + place]), packed[span.key_start : stop]))
    return found


@settings(deadline=None, max_examples=40)
@given(lengths=packs, ring=st.integers(1, 5), ulysses=st.integers(1, 3), layout=st.sampled_from(LAYOUTS))
def test_gathering_brings_every_query_exactly_its_keys_and_nothing_else(lengths, ring, ulysses, layout):
    plan = make_plan([0, *accumulate(lengths)], (ring, ulysses), layout=layout)
    tokens = [_tokens(plan, rank) for rank in range(ring)]
    schedules = [gather_schedule(plan, rank, CPU) for rank in range(ring)]
    sent = [_sent(schedule, tokens[rank]) for rank, schedule in enumerate(schedules)]
    seen, computed = _seen(plan), {}
    for rank, schedule in enumerate(schedules):
        received = [sent[other][rank] for other in range(ring)]
        assert [len(part) for part in received] == list(schedule.received)
        keys = torch.cat([tokens[rank], *received])
        packed = _packed(schedule, tokens[rank], torch.cat(received))
        computed.update((query, set(visible)) for query, visible in _pairs(schedule.segments, tokens[rank], packed))
        needed = set().union(*(seen[int(query)] for query in tokens[rank]), tokens[rank].tolist()) if len(tokens[rank]) else set()
        assert sorted(keys.tolist()) == sorted(needed)
        assert schedule.widest == max(sum(other.received) for other in schedules)
    assert computed == seen


@settings(deadline=None, max_examples=40)
@given(lengths=packs, ring=st.integers(2, 5), layout=st.sampled_from(LAYOUTS))
def test_a_round_of_the_ring_meets_every_pair_once(lengths, ring, layout):
    plan = make_plan([0, *accumulate(lengths)], ring, layout=layout)
    tokens = [_tokens(plan, rank) for rank in range(ring)]
    computed = {}
    for rank in range(ring):
        schedule = ring_schedule(plan, rank, CPU)
        for hop, call in enumerate(schedule.calls):
            source = tokens[(rank - hop) % ring]
            keys = torch.full((schedule.room,), -1)
            keys[: len(source)] = source
            for query, visible in _visible(call, tokens[rank], keys):
                computed.setdefault(query, []).extend(visible)
    assert {query: sorted(keys) for query, keys in computed.items()} == {q: sorted(keys) for q, keys in _seen(plan).items()}


@settings(deadline=None, max_examples=40)
@given(lengths=packs, ring=st.integers(1, 4), layout=st.sampled_from(LAYOUTS), hop=st.integers(0, 4))
def test_unpack_is_the_transpose_of_pack_in_a_ring(lengths, ring, layout, hop):
    plan = make_plan([0, *accumulate(lengths)], ring, layout=layout)
    for rank in range(ring):
        call = ring_schedule(plan, rank, CPU).calls[hop % ring]
        rows = torch.randint(-9, 9, (call.key_rows, 2)).double()
        packed = call.pack(rows)
        other = torch.randint(-9, 9, packed.shape).double()
        assert float((packed * other).sum()) == float((rows * call.unpack(other)).sum())


@settings(deadline=None, max_examples=60)
@given(lengths=packs, ring=st.integers(1, 4), layout=st.sampled_from(LAYOUTS))
def test_gradients_go_back_to_every_row_that_was_gathered_and_are_summed_once(lengths, ring, layout):
    """Each packed row's gradient is one: an own row gets as many as copies of it exist on all ranks."""
    plan = make_plan([0, *accumulate(lengths)], ring, layout=layout)
    schedules = [gather_schedule(plan, rank, CPU) for rank in range(ring)]
    tokens = [_tokens(plan, rank) for rank in range(ring)]
    sent = [_sent(one, tokens[rank]) for rank, one in enumerate(schedules)]
    copies = torch.zeros(plan.cu_seqlens[-1])
    returned = []
    for rank, one in enumerate(schedules):
        received = torch.cat([sent[other][rank] for other in range(ring)])
        copies += torch.bincount(_packed(one, tokens[rank], received), minlength=len(copies))
        theirs = _summed(one.keys.back, len(received), torch.ones(one.keys.packed))
        returned.append(theirs.split(list(one.received)))
    for rank, one in enumerate(schedules):
        arriving = torch.cat([returned[other][rank] for other in range(ring)])
        mine = _summed(one.keys.own, len(tokens[rank]), torch.ones(one.keys.packed), arriving)
        assert torch.equal(mine, copies[tokens[rank]].double())


def test_whole_documents_move_nothing_and_copy_nothing():
    whole = gather_schedule(make_plan([0, 7, 14], 2, layout="balanced"), 0, CPU)
    assert whole.widest == 0
    assert whole.keys.as_they_lie
    alone = gather_schedule(make_plan([0, 7, 20], (1, 4)), 0, CPU)
    assert alone.keys.as_they_lie
    assert alone.segments.query_lengths == (7, 13)


def test_schedules_are_made_once_for_a_plan_and_device():
    plan = make_plan([0, 40], 2, layout="zigzag")
    assert gather_schedule(plan, 0, CPU) is gather_schedule(plan, 0, CPU)
    assert gather_schedule(plan, 0, CPU) is not gather_schedule(plan, 1, CPU)


def test_one_document_over_two_ranks_sends_the_later_rank_three_quarters():
    """Rank 0 of a zigzag needs all keys, rank 1 those before its tail's end: half, and the head of the other half."""
    schedules = [gather_schedule(make_plan([0, 400], 2, layout="zigzag"), rank, CPU) for rank in range(2)]
    assert [schedule.received for schedule in schedules] == [(0, 200), (100, 0)]
    assert [schedule.segments.key_lengths for schedule in schedules] == [(100, 400), (300,)]


@pytest.mark.parametrize(("runs", "rows"), [([], []), ([(2, 4), (0, 1)], [2, 3, 0]), ([(3, 3)], [])])
def test_row_index_lists_the_rows_of_runs(runs, rows):
    assert row_index(runs).tolist() == rows
