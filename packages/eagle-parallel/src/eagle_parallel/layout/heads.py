"""Which query and KV heads a Ulysses rank computes, for any head counts and any number of ranks.

Query heads are dealt in consecutive runs as evenly as possible; a KV head goes to every rank that holds one of its queries, once.
A run may begin or end inside a group of grouped queries; `uniform_blocks` cuts it into calls that a GQA kernel takes.
"""

from __future__ import annotations

from typing import NamedTuple


class HeadShare(NamedTuple):
    """Query heads [query_start, query_end) of the model and the KV heads [kv_start, kv_end) that they attend with."""

    query_start: int
    query_end: int
    kv_start: int
    kv_end: int

    @property
    def query_heads(self) -> int:
        return self.query_end - self.query_start

    @property
    def kv_heads(self) -> int:
        return self.kv_end - self.kv_start


class HeadBlock(NamedTuple):
    """Heads of one kernel call, counted within a share; as many query heads for each KV head."""

    query_start: int
    query_end: int
    kv_start: int
    kv_end: int


def deal_heads(query_heads: int, kv_heads: int, ranks: int) -> list[HeadShare]:
    """The share of each rank. Query counts differ by at most one; with more ranks than heads some ranks hold none.

    Borders lie at query_heads * rank // ranks, hence on KV borders wherever ranks is a multiple or a divisor of kv_heads.
    """
    group = query_heads // kv_heads
    shares = []
    for rank in range(ranks):
        start, end = query_heads * rank // ranks, query_heads * (rank + 1) // ranks
        shares.append(HeadShare(start, end, start // group, -(-end // group)) if start < end else HeadShare(start, start, 0, 0))
    return shares


def uniform_blocks(share: HeadShare, group: int, kv_start: int, kv_end: int) -> list[HeadBlock]:
    """The share's queries of its KV heads [kv_start, kv_end), counted within the share, in as few uniform blocks as possible.

    Args:
        share: a rank's heads.
        group: query heads for each KV head of the model.
        kv_start: first KV head, 0 is the share's first.
        kv_end: one after the last.
    """
    blocks: list[HeadBlock] = []
    for kv in range(kv_start, kv_end):
        first = (share.kv_start + kv) * group
        start = max(first, share.query_start) - share.query_start
        end = min(first + group, share.query_end) - share.query_start
        last = blocks[-1] if blocks else None
        if last and last.query_end - last.query_start == (end - start) * (last.kv_end - last.kv_start):
            blocks[-1] = HeadBlock(last.query_start, end, last.kv_start, kv + 1)
        else:
            blocks.append(HeadBlock(start, end, kv, kv + 1))
    return blocks
