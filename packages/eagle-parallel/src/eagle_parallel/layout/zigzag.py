"""Zigzag: every rank holds a chunk from a document's head and the mirrored chunk from its tail, so causal work is balanced."""

from __future__ import annotations

from collections.abc import Sequence

from eagle_parallel.layout.pieces import Piece


def zigzag(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Two chunks of every document for each rank (section A.7).

    A document of n tokens gives each rank n // ranks tokens or one more; who gets the extra ones goes round from document to
    document, so that the totals of a pack differ by at most one.
    """
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    turn = 0
    for document, length in enumerate(lengths):
        each, extra = divmod(length, ranks)
        deal_document(dealt, document, length, [each + ((rank - turn) % ranks < extra) for rank in range(ranks)])
        turn = (turn + extra) % ranks
    return dealt


def deal_document(dealt: list[list[Piece]], document: int, length: int, shares: Sequence[int]) -> None:
    """Append to dealt[rank] the one or two chunks that give each rank shares[rank] of a document's `length` tokens.

    Head chunks are laid from the front in rank order, tail chunks from the back, so every head token has a mirrored tail token
    whose causal work with it is n or n + 1 pairs: a rank's work is its share of the tokens times half the length, nearly.
    """
    before, head, tail = 0, 0, length
    for pieces, share in zip(dealt, shares, strict=True):
        if not share:
            continue
        before += share
        head_start, tail_end = head, tail
        head, tail = before // 2, length - (before - before // 2)
        if head_start < head == tail < tail_end:
            pieces.append(Piece(document, head_start, tail_end))
            continue
        if head_start < head:
            pieces.append(Piece(document, head_start, head))
        if tail < tail_end:
            pieces.append(Piece(document, tail, tail_end))
