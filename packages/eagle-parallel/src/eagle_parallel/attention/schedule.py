"""What each ring rank sends, receives and computes, worked out once per plan and device from the plan's integers.

Gathering sends a rank exactly the keys that its queries see; a document that is whole on one rank moves nothing. The ring passes
every rank's keys round and computes, at each hop, what the queries see of them. Index tensors stay with the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from eagle_parallel.attention.call import Call, row_index
from eagle_parallel.attention.key_rows import KeyRows
from eagle_parallel.kernels.segments import Segments
from eagle_parallel.layout import Piece
from eagle_parallel.plan import Plan

Runs = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class GatherSchedule:
    """The queries are this rank's rows as they lie; rows are received from ring rank 0, 1, ... in the order of their owner."""

    segments: Segments
    keys: KeyRows
    sent: tuple[int, ...]
    received: tuple[int, ...]
    widest: int  # rows that the busiest rank receives: equal on every rank, 0 if nothing moves anywhere


@dataclass(frozen=True, eq=False)
class RingSchedule:
    """`calls[hop]` meets the keys of the ring rank `hop` places before this one; every rank's keys travel as `room` rows."""

    calls: tuple[Call, ...]
    rows: int
    room: int


def gather_schedule(plan: Plan, rank: int, device: torch.device) -> GatherSchedule:
    """The schedule of a ring rank, kept with the plan."""
    return plan.derived(("gather", rank, str(device)), lambda: _gather(plan, rank, device))


def ring_schedule(plan: Plan, rank: int, device: torch.device) -> RingSchedule:
    """The schedule of a ring rank, kept with the plan."""
    return plan.derived(("ring", rank, str(device)), lambda: _ring(plan, rank, device))


def _gather(plan: Plan, rank: int, device: torch.device) -> GatherSchedule:
    shares = [plan.ring_pieces(other) for other in range(plan.cp_ring)]
    needs = [_needs(share) for share in shares]
    sent = [_needed_runs(shares[rank], needs[other]) if other != rank else [] for other in range(plan.cp_ring)]
    received = [_needed_runs(shares[other], needs[rank]) if other != rank else [] for other in range(plan.cp_ring)]
    rows = _count(_rows(shares[rank]))
    # Where every needed position of a document lies in this rank's rows followed by the received ones.
    places: dict[int, list[tuple[int, int, int]]] = {}
    offset = 0
    for other in [rank, *(other for other in range(plan.cp_ring) if other != rank)]:
        for piece in shares[other]:
            end = piece.end if other == rank else min(piece.end, needs[rank].get(piece.document, 0))
            if piece.start < end:
                places.setdefault(piece.document, []).append((piece.start, end, offset))
                offset += end - piece.start
    for runs in places.values():
        runs.sort()
    keys = [
        [(row, row + min(end, piece.end) - start) for start, end, row in places[piece.document] if start < piece.end]
        for piece in shares[rank]
    ]
    lengths = [_count(runs) for runs in keys]
    segments = Segments.of([piece.end - piece.start for piece in shares[rank]], lengths, causal=True, device=device)
    turns = torch.tensor(_turns([piece.document for piece in shares[rank]]), dtype=torch.int64)
    turns = turns.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    sent_rows = row_index([run for runs in sent for run in runs])
    key_rows = KeyRows.of(row_index([run for runs in keys for run in runs]), turns, rows, offset - rows, sent_rows, device)
    # Every rank holds what it owns, and receives the rest of the keys up to the last that it needs of each document.
    volumes = [sum(needs[other].values()) - _count(_rows(shares[other])) for other in range(plan.cp_ring)]
    return GatherSchedule(
        segments,
        key_rows,
        tuple(map(_count, sent)),
        tuple(map(_count, received)),
        max(volumes),
    )


def _ring(plan: Plan, rank: int, device: torch.device) -> RingSchedule:
    shares = [plan.ring_pieces(other) for other in range(plan.cp_ring)]
    counts = [_count(_rows(share)) for share in shares]
    room = max(1, *counts)
    calls = []
    for hop in range(plan.cp_ring):
        source = (rank - hop) % plan.cp_ring
        there = list(zip(shares[source], _rows(shares[source]), strict=True))
        queries: Runs = []
        keys: list[Runs] = []
        documents: list[int] = []
        for piece, run in zip(shares[rank], _rows(shares[rank]), strict=True):
            # Pieces do not overlap: another rank's piece is seen whole or not at all, one's own up to the diagonal.
            seen = [rows for other, rows in there if other.document == piece.document and other.start <= piece.start]
            if seen:
                queries.append(run)
                keys.append(seen)
                documents.append(piece.document)
        calls.append(
            Call.of(
                queries,
                keys,
                _turns(documents),
                query_rows=counts[rank],
                key_rows=room,
                causal=hop == 0,
                device=device,
            )
        )
    return RingSchedule(tuple(calls), counts[rank], room)


def _needs(share: Sequence[Piece]) -> dict[int, int]:
    """For each document of a share the end of the keys that its queries see."""
    needs: dict[int, int] = {}
    for document, _, end in share:
        needs[document] = max(needs.get(document, 0), end)
    return needs


def _needed_runs(share: Sequence[Piece], needs: dict[int, int]) -> Runs:
    """The rows of a share that a rank with these needs receives."""
    runs = []
    for (document, start, end), (row, _) in zip(share, _rows(share), strict=True):
        stop = min(end, needs.get(document, 0))
        if start < stop:
            runs.append((row, row + stop - start))
    return runs


def _rows(share: Sequence[Piece]) -> Runs:
    borders = [0, *accumulate(end - start for _, start, end in share)]
    return list(pairwise(borders))


def _count(runs: Runs) -> int:
    return sum(end - start for start, end in runs)


def _turns(documents: Sequence[int]) -> list[int]:
    """For each piece how many pieces of its document come after it: number 0 sees all keys that its document's pieces see."""
    seen: dict[int, int] = {}
    turns = []
    for document in reversed(documents):
        turns.append(seen.get(document, 0))
        seen[document] = turns[-1] + 1
    return turns[::-1]
