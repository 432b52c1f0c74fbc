"""What a layout asks of the busiest rank of a ring: kernel tiles, keys to fetch, imbalance. No plan is built.

Attention kernels compute tiles of 128 queries, so a chunk of 30 rows costs what one of 128 costs. That waste, and not the count
of pairs, is what cutting short documents loses. The Ulysses axis does not appear: its ranks attend to their ring share together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from eagle_parallel.layout.balanced import place
from eagle_parallel.planner.hardware import TILE

LayoutName = Literal["zigzag", "balanced", "contiguous"]
LAYOUTS: tuple[LayoutName, ...] = ("zigzag", "balanced", "contiguous")
TILE_OVERHEAD = 64  # keys: reading Q and writing O of a tile cost about this many more keys (assumed)


@dataclass(frozen=True)
class RankLoad:
    """The busiest rank of the ring under a layout.

    pairs: (query, key) pairs of one head with queries rounded up to tiles, and the cost of starting each tile.
    exact_pairs: causal pairs of one head on that rank, nothing rounded.
    mean_pairs: causal pairs of the pack divided by the ranks.
    longest: keys that the longest tile visits.
    moved_tokens: tokens of other ranks whose K and V the rank needs.
    short_rows: share of the pack's tokens that lie in chunks shorter than a tile because their document was cut.
    query_rows: mean query rows of a rank, no tile rounding.
    key_rows: key rows of its kernel call; a rank with head and tail of a document passes the keys of both.
    cut_documents: documents of which the rank has a part.
    """

    layout: LayoutName
    pairs: float
    exact_pairs: float
    mean_pairs: float
    longest: int
    moved_tokens: float
    short_rows: float
    query_rows: float
    key_rows: float
    cut_documents: int

    @property
    def imbalance(self) -> float:
        """Causal work of the busiest rank over the mean; 1 is balanced."""
        return self.exact_pairs / self.mean_pairs if self.mean_pairs else 1.0


def rank_load(lengths: Sequence[int], ring: int, layout: LayoutName) -> RankLoad:
    """The load of the busiest of `ring` ranks.

    Args:
        lengths: documents of the pack in order, tokens each.
        ring: ranks that divide the pack, cp_ring.
        layout: as in `make_plan`: "zigzag", "balanced" (documents whole on one rank, the longest zigzagged) or "contiguous".

    Raises:
        ValueError: ring or layout is not as described.
    """
    if ring < 1:
        raise ValueError(f"ring must be a positive integer, got {ring!r}.")
    if layout == "contiguous" or ring == 1:
        return _contiguous(lengths, ring, layout)
    if layout == "zigzag":
        return _zigzag(lengths, ring, layout)
    if layout == "balanced":
        return _balanced(lengths, ring, layout)
    raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}.")


def tiled_pairs(first: int, rows: int) -> int:
    """Pairs of one head that a kernel computes for queries [first, first + rows) of a document, in tiles of 128 rows."""
    tiles = -(-rows // TILE)
    keys = tiles * (first + TILE_OVERHEAD) + TILE * (tiles * (tiles - 1) // 2) + rows if rows else 0
    return TILE * keys


def _zigzag(lengths: Sequence[int], ring: int, layout: LayoutName) -> RankLoad:
    """Every rank holds the same: of a document of n tokens two chunks of c = n / 2 ring rows, starting at a sum of n - c."""
    pairs, work, short, edge = 0.0, 0, 0, 2 * ring * TILE
    for length in lengths:
        work += length * (length + 1)
        chunk = length / (2 * ring)
        if length < edge:
            short += length
            # Below one row a chunk, only some ranks hold a chunk at all.
            pairs += (length + chunk + 2 * TILE_OVERHEAD) * min(1.0, chunk)
        else:
            tiles = -(-length // edge)  # of one chunk
            pairs += tiles * (length - chunk + 2 * TILE_OVERHEAD + TILE * (tiles - 1)) + 2 * chunk
    share, tokens = work / 2 / ring, sum(lengths)
    moved = tokens * (ring - 1) / ring
    return RankLoad(
        layout,
        TILE * pairs,
        share,
        share,
        max(lengths, default=0),
        moved,
        short / max(1, tokens),
        tokens / ring,
        tokens * (1 + 1 / (2 * ring)),  # a head of (r + 1) chunks and a tail of 2 ring - r
        sum(map(bool, lengths)),
    )


def _balanced(lengths: Sequence[int], ring: int, layout: LayoutName) -> RankLoad:
    """The layout's own placement of whole documents; the cut ones cost each rank its part of what zigzag makes of them."""
    placed, total = place(tuple(lengths), ring), sum(lengths)
    cut = _zigzag([lengths[document] for document in placed.cut], ring, layout)
    tiled = [cut.pairs * work / cut.exact_pairs if work else 0.0 for work in placed.cut_work]
    whole = [0] * ring
    for length, rank in zip(lengths, placed.owners, strict=True):
        if rank is not None:
            tiled[rank] += tiled_pairs(0, length)
            whole[rank] += length
    return replace(
        cut,
        pairs=max(tiled),
        exact_pairs=placed.most_work,
        mean_pairs=sum(length * (length + 1) for length in lengths) / 2 / ring,
        longest=max(lengths, default=0),
        short_rows=cut.short_rows * sum(placed.room) / max(1, total),
        query_rows=total / ring,
        key_rows=cut.key_rows + max(whole),
    )


def _contiguous(lengths: Sequence[int], ring: int, layout: LayoutName) -> RankLoad:
    """One run of the pack each; documents that cross a border are fetched by all, as those that zigzag cuts."""
    ends = list(accumulate(lengths))
    total, document, worst, worst_exact, cut, short = (ends[-1] if ends else 0), 0, 0, 0, 0, 0
    most_keys = most_cut = 0
    for rank in range(ring):
        low, high, pairs, exact = total * rank // ring, total * (rank + 1) // ring, 0, 0
        keys = parts = 0
        while low < high:
            while ends[document] <= low:
                document += 1
            first, stop = low - ends[document] + lengths[document], min(high, ends[document])
            rows = stop - low
            pairs += tiled_pairs(first, rows)
            exact += rows * first + rows * (rows + 1) // 2
            keys += first + rows
            if rows < lengths[document]:
                cut += rows
                parts += 1
                short += rows if rows < TILE else 0
            low = stop
        worst, worst_exact = max(worst, pairs), max(worst_exact, exact)
        most_keys, most_cut = max(most_keys, keys), max(most_cut, parts)
    mean = sum(length * (length + 1) // 2 for length in lengths) / ring
    moved = cut * (ring - 1) / ring
    short_share = short / max(1, total)
    return RankLoad(
        layout, worst, worst_exact, mean, max(lengths, default=0), moved, short_share, total / ring, most_keys, most_cut
    )
