"""Documents whole on one rank wherever that keeps the ranks level; those that do not fit are cut, few as a rule.

A whole document sends nothing, and it is one run for the kernel, where chunks of a few rows waste most of a tile. The cut ones
make up for what the whole ones leave uneven, in tokens and in causal work. Deterministic and greedy: not an optimal packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from eagle_parallel.layout.pieces import Piece
from eagle_parallel.layout.zigzag import deal_document

_UNEVEN = 0.01  # of a mean share: what keeping documents whole may cost, less than one exchange of keys in a layer


@dataclass(frozen=True)
class Placement:
    """Which documents stay whole, and what the others must give each rank.

    owners[document]: the rank that holds it whole; None for cut and empty ones. cut: the divided documents, in pack order.
    room[rank]: tokens of cut documents that the rank takes. tilt[rank]: how its part of a cut document grows with the document's
    length; 0 takes the same part of all. whole_work[rank], cut_work[rank]: causal pairs, cut ones to within two a token.
    """

    owners: tuple[int | None, ...]
    cut: tuple[int, ...]
    room: tuple[int, ...]
    tilt: tuple[float, ...]
    whole_work: tuple[float, ...]
    cut_work: tuple[float, ...]

    @property
    def most_work(self) -> float:
        """Causal pairs of the busiest rank."""
        return max(map(sum, zip(self.whole_work, self.cut_work, strict=True)))


def balanced(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Pieces of each rank; the largest causal work exceeds the mean by about 1 % at most.

    Where whole documents alone bring every rank within 1 % of its share of tokens and of work, none is cut and nothing travels.
    Otherwise the longest are cut by zigzag, and token counts differ by at most one.
    """
    return _deal(lengths, place(tuple(lengths), ranks))


@lru_cache(maxsize=16)  # the cost model asks for the placement of the pack that is dealt next
def place(lengths: tuple[int, ...], ranks: int) -> Placement:
    """Decide who holds which whole document, and which documents are cut.

    First no document is cut but those longer than a rank's share, or dearer. Where that misses the bounds the longest whole one
    joins them, then half as many again; with all of them cut it is nearly plain zigzag, with its bounds.
    """
    order = sorted((document for document, length in enumerate(lengths) if length), key=lambda each: (-lengths[each], each))
    total = sum(lengths)
    mean = sum(_pairs(lengths[document]) for document in order) / ranks
    limit = (1 + _UNEVEN) * mean + total / ranks
    loose = max(-(-total // ranks), int((1 + _UNEVEN) * total / ranks))
    count = 0
    while count < len(order) and (lengths[order[count]] > loose or _pairs(lengths[order[count]]) > limit):
        count += 1
    if not count:
        found = _place(lengths, order, 0, [loose] * ranks, total / ranks - loose, mean, limit, most_cut=0)
        if found:
            return found
    room = [total * (rank + 1) // ranks - total * rank // ranks for rank in range(ranks)]
    while True:
        found = _place(lengths, order, count, room, 0.0, mean, limit, most_cut=max(2 * count, len(order) // 4))
        if found and (found.most_work <= limit or count >= len(order)):
            return found
        count = min(len(order), max(count + 1, count * 3 // 2))


def _pairs(length: int) -> float:
    return length * (length + 1) / 2


def _place(
    lengths: Sequence[int],
    order: Sequence[int],
    count: int,
    room: Sequence[int],
    spare: float,
    mean: float,
    limit: float,
    *,
    most_cut: int,
) -> Placement | None:
    """The longest `count` are cut; the others go whole to the rank that needs them most, or are cut where they fit on none.

    None where more than `most_cut` documents would be cut. `room` are the tokens that ranks may take; with `spare` added, which
    is negative where they may take more than their share, it is that share.
    """
    ranks, cut = len(room), list(order[:count])
    owners: list[int | None] = [None] * len(lengths)
    left, lack = list(room), [mean] * ranks
    cut_tokens = sum(lengths[document] for document in cut)
    slope = sum(_pairs(lengths[document]) for document in cut) / cut_tokens if cut_tokens else 0.0
    need = [0.0] * ranks
    for document in order[count:]:
        length, work = lengths[document], _pairs(lengths[document])
        least = work + mean - limit
        rank = need.index(max(need))
        if left[rank] < length or lack[rank] < least:
            fitting = [other for other in range(ranks) if left[other] >= length and lack[other] >= least]
            if not fitting:
                cut.append(document)
                if len(cut) > most_cut:
                    return None
                continue
            rank = max(fitting, key=need.__getitem__)
        owners[document] = rank
        left[rank] -= length
        lack[rank] -= work
        if cut_tokens:
            # A whole document displaces cut tokens of `slope` pairs each: what that saves is to be the same on every rank.
            need[rank] += work - slope * length
        else:
            # Part of its work that is lacking over part of its tokens: the longest document suits the rank where it is highest.
            free = (left[rank] + spare) / (room[rank] + spare)
            need[rank] = max(0.0, lack[rank] / mean) / max(1e-3, free) - 1
    whole_work = tuple(mean - lacking for lacking in lack)
    if not cut:
        return Placement(tuple(owners), (), (0,) * ranks, (0.0,) * ranks, whole_work, (0.0,) * ranks)
    tilt, cut_work = _level([lengths[document] for document in cut], left, lack)
    return Placement(tuple(owners), tuple(sorted(cut)), tuple(left), tilt, whole_work, cut_work)


def _level(cut: Sequence[int], room: Sequence[int], lack: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(tilt, work) of the ranks that share the cut documents, so that each gets the work it lacks as far as shares allow.

    A token of a zigzagged document of n tokens costs (n + 1) / 2 pairs whoever holds it. A rank that takes the part
    room / tokens * (1 + tilt * (cost - mean cost)) of every document thus gets its tokens and
    room * (mean cost + tilt * variance) pairs; the parts of all ranks sum to one because tilts weighted by room sum to zero.
    """
    tokens = sum(cut)
    costs = [(length + 1) / 2 for length in cut]
    mean = sum(length * cost for length, cost in zip(cut, costs, strict=True)) / tokens
    variance = sum(length * (cost - mean) ** 2 for length, cost in zip(cut, costs, strict=True)) / tokens
    if not variance:
        return (0.0,) * len(room), tuple(mean * free for free in room)
    tilt = [(lacking / free - mean) / variance if free else 0.0 for free, lacking in zip(room, lack, strict=True)]
    offset = sum(free * each for free, each in zip(room, tilt, strict=True)) / tokens
    tilt = [each - offset if free else 0.0 for free, each in zip(room, tilt, strict=True)]
    low, high = min(costs) - mean, max(costs) - mean
    # No part may be negative: all tilts are scaled alike, which keeps their weighted sum zero.
    steepest = max(-min(each * low, each * high) for each in tilt)
    tilt = [each / max(1.0, steepest) for each in tilt]
    return tuple(tilt), tuple(free * (mean + each * variance) for free, each in zip(room, tilt, strict=True))


def _deal(lengths: Sequence[int], placed: Placement) -> list[list[Piece]]:
    dealt: list[list[Piece]] = [[] for _ in placed.room]
    cut = frozenset(placed.cut)
    tokens = sum(placed.room)
    mean = sum(lengths[document] * (lengths[document] + 1) / 2 for document in cut) / tokens if cut else 0.0
    left, due = list(placed.room), [0.0] * len(dealt)
    even = [free / tokens for free in placed.room] if cut else []
    lean = [part * tilt for part, tilt in zip(even, placed.tilt, strict=True)] if cut else []
    for document, length in enumerate(lengths):
        if document in cut:
            tilted = length * ((length + 1) / 2 - mean)
            due = [old + length * part + tilted * more for old, part, more in zip(due, even, lean, strict=True)]
            shares = _rounded(due, left, length)
            deal_document(dealt, document, length, shares)
            left = [free - share for free, share in zip(left, shares, strict=True)]
            due = [old - share for old, share in zip(due, shares, strict=True)]
        elif (rank := placed.owners[document]) is not None:
            dealt[rank].append(Piece(document, 0, length))
    return dealt


def _rounded(due: Sequence[float], left: Sequence[int], length: int) -> list[int]:
    """Integers near `due`, none above `left`, that sum to `length`. What is not given now is due with the next document.

    Possible as long as left sums to what all cut documents that are left hold; the last one then fills every rank exactly.
    """
    shares = [min(free, int(part)) if part > 0 else 0 for part, free in zip(due, left, strict=True)]
    missing = length - sum(shares)
    while missing:
        step = 1 if missing > 0 else -1
        behind = [step * (share - part) for share, part in zip(shares, due, strict=True)]
        able = [rank for rank, share in enumerate(shares) if (share < left[rank] if step > 0 else share)]
        for rank in sorted(able, key=behind.__getitem__)[: abs(missing)]:
            shares[rank] += step
        missing = length - sum(shares)
    return shares
