"""How the tokens of a pack are dealt to ranks, as pure integer arithmetic: zigzag per document, or contiguous.

A layout gives each rank a list of pieces (document, start, end) with start and end counted from the document's first token.
Any length works, also shorter than the number of ranks; nothing is padded. Which rank talks to whom is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens [start, end) of a document, counted from the document's first token."""

    document: int
    start: int
    end: int


def zigzag(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """Two chunks of every document for each rank, one from its head and the mirrored one from its tail (section A.7).

    A document of n tokens gives each rank n // ranks tokens or one more; who gets the extra ones goes round from document to
    document, so that the totals of a pack differ by at most one. Head chunks are laid from the front in rank order, tail
    chunks from the back, so every head token has a mirrored tail token whose causal work with it is n or n + 1 pairs.
    """
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    turn = 0
    for document, length in enumerate(lengths):
        each, extra = divmod(length, ranks)
        before = 0
        for rank in range(ranks):
            after = before + each + ((rank - turn) % ranks < extra)
            head = Piece(document, before // 2, after // 2)
            tail = Piece(document, length - (after - after // 2), length - (before - before // 2))
            dealt[rank] += _joined([head, tail])
            before = after
        turn = (turn + extra) % ranks
    return dealt


def contiguous(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """One run of the whole pack for each rank, totals differing by at most one token. Causal work is not balanced."""
    whole = [Piece(document, 0, length) for document, length in enumerate(lengths)]
    return split(whole, ranks)


def split(pieces: Sequence[Piece], ranks: int) -> list[list[Piece]]:
    """Cut a list of pieces, in order, into `ranks` lists whose token counts differ by at most one."""
    total = sum(piece.end - piece.start for piece in pieces)
    parts: list[list[Piece]] = []
    for rank in range(ranks):
        low, high, offset, part = total * rank // ranks, total * (rank + 1) // ranks, 0, []
        for document, start, end in pieces:
            first, last = max(start, start + low - offset), min(end, start + high - offset)
            offset += end - start
            if first < last:
                part.append(Piece(document, first, last))
        parts.append(part)
    return parts


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Non-empty pieces of one document, neighbours made one (the innermost rank's head and tail meet)."""
    kept = [piece for piece in pieces if piece.start < piece.end]
    if len(kept) == 2 and kept[0].end == kept[1].start:
        return [Piece(kept[0].document, kept[0].start, kept[1].end)]
    return kept
