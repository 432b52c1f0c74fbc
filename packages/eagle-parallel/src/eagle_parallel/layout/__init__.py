"""How the tokens and heads of a pack are dealt to ranks, as pure integer arithmetic.

A token layout gives each rank a list of pieces (document, start, end); a head layout gives each rank runs of query heads and the
KV heads that they need. Any length and any head count work, nothing is padded. Which rank talks to whom is not decided here.
"""

from eagle_parallel.layout.balanced import balanced
from eagle_parallel.layout.heads import HeadBlock, HeadShare, deal_heads, uniform_blocks
from eagle_parallel.layout.pieces import Piece, contiguous, joined, split
from eagle_parallel.layout.zigzag import deal_document, zigzag

__all__ = [
    "HeadBlock",
    "HeadShare",
    "Piece",
    "balanced",
    "contiguous",
    "deal_document",
    "deal_heads",
    "joined",
    "split",
    "uniform_blocks",
    "zigzag",
]
