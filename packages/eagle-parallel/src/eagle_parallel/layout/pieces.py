"""Pieces of documents, and the two operations on lists of them: cut a list into equal parts, join neighbours again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens [start, end) of a document, counted from the document's first token."""

    document: int
    start: int
    end: int


def contiguous(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    """One run of the whole pack for each rank, totals differing by at most one token. Causal work is not balanced."""
    whole = [Piece(document, 0, length) for document, length in enumerate(lengths)]
    return split(whole, ranks)


def split(pieces: Sequence[Piece], ranks: int) -> list[list[Piece]]:
    """Cut a list of pieces, in order, into `ranks` lists whose token counts differ by at most one."""
    if ranks == 1:
        return [[piece for piece in pieces if piece.start < piece.end]]
    total = sum(piece.end - piece.start for piece in pieces)
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    rank, offset = 0, 0
    for document, start, end in pieces:
        while start < end:
            border = total * (rank + 1) // ranks
            if offset == border:
                rank += 1
                continue
            taken = min(end - start, border - offset)
            parts[rank].append(Piece(document, start, start + taken))
            start, offset = start + taken, offset + taken
    return parts


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The non-empty pieces in the same order, neighbours of one document that touch made one."""
    kept: list[Piece] = []
    for piece in pieces:
        if piece.start == piece.end:
            continue
        if kept and kept[-1].document == piece.document and kept[-1].end == piece.start:
            kept[-1] = Piece(piece.document, kept[-1].start, piece.end)
        else:
            kept.append(piece)
    return kept
