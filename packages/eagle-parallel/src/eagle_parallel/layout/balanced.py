"""Short documents whole on one rank, long ones zigzagged over all, with equal token counts and nearly equal causal work.

A document kept whole sends nothing and is one run for the kernel, where chunks of a few rows waste most of a tile. Deterministic
integer arithmetic; not an optimal packing: it splits one more document rather than search for a better fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

from eagle_parallel.layout.pieces import Piece
from eagle_parallel.layout.zigzag import deal_document

# A chunk of two 128-row tiles of a flash kernel loses little to fragmentation; shorter documents are better kept whole.
_CHUNK = 256
_IMBALANCE = 0.01


def balanced(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Pieces of each rank; token counts differ by at most one, the largest causal work exceeds the mean by about 1 % at most.

    Documents of 2 * ranks * 256 tokens or more are dealt by zigzag. The others are placed whole, the longest first, each on the
    rank that it leaves most level; the zigzagged ones then fill every rank to its token count. Where that misses the bounds,
    the longest whole documents join the zigzagged ones; with all of them split it is plain zigzag with its bounds.
    """
    order = sorted(range(len(lengths)), key=lambda document: (-lengths[document], document))
    count = sum(length >= 2 * ranks * _CHUNK for length in lengths)
    total = sum(lengths)
    room = [total * (rank + 1) // ranks - total * rank // ranks for rank in range(ranks)]
    work = sum(length * (length + 1) // 2 for length in lengths)
    while True:
        owner, left, loads = _place(lengths, order[count:], order[:count], room)
        # A rank's zigzagged tokens cost half their document's length each, so its work is known before they are dealt.
        if min(left) >= 0 and (count == len(lengths) or max(loads) * ranks <= (1 + _IMBALANCE) * work + 2 * ranks * total):
            break
        count = min(len(lengths), max(count + 1, count * 3 // 2))
    return _deal(lengths, owner, left)


def _place(
    lengths: Sequence[int], whole: Sequence[int], cut: Sequence[int], room: Sequence[int]
) -> tuple[dict[int, int], list[int], list[float]]:
    """The rank of each whole document, the tokens each rank has left for the others, and the work it will have."""
    cut_tokens = sum(lengths[document] for document in cut)
    slope = sum(lengths[document] * (lengths[document] + 1) / 2 for document in cut) / cut_tokens if cut_tokens else 0.0
    # With cut documents a whole one displaces tokens of work `slope`, and ranks fill by tokens; alone, ranks fill by work.
    heap: list[tuple[float, int]] = [(0.0, rank) for rank in range(len(room))]
    heapify(heap)
    owner, left, load = {}, list(room), [slope * tokens for tokens in room]
    for document in whole:
        length = lengths[document]
        value, rank = heap[0]
        work = length * (length + 1) / 2 - slope * length
        heapreplace(heap, (value + (length if slope else work), rank))
        owner[document] = rank
        left[rank] -= length
        load[rank] += work
    return owner, left, load


def _deal(lengths: Sequence[int], owner: dict[int, int], left: list[int]) -> list[list[Piece]]:
    dealt: list[list[Piece]] = [[] for _ in left]
    remaining = sum(left)
    for document, length in enumerate(lengths):
        if not length:
            continue
        rank = owner.get(document)
        if rank is not None:
            dealt[rank].append(Piece(document, 0, length))
            continue
        # In proportion to what each rank still lacks, the largest remainders rounded up: the last document fills all exactly.
        shares = [lack * length // remaining for lack in left]
        by_remainder = sorted(range(len(left)), key=lambda rank: (-(left[rank] * length % remaining), rank))
        for rank in by_remainder[: length - sum(shares)]:
            shares[rank] += 1
        deal_document(dealt, document, length, shares)
        left = [lack - share for lack, share in zip(left, shares, strict=True)]
        remaining -= length
    return dealt
