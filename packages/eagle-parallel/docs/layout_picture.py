"""Draws layout.svg of the README from a real plan: who owns which tokens of a pack over 8 ranks, 4 in the ring times 2 that share
heads. Run it from anywhere after a change of the layout; a test compares the committed picture with what it draws.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

from eagle_parallel import make_plan
from eagle_parallel.layout import deal_heads

LENGTHS = (40, 17, 7)
RING, ULYSSES = 4, 2
QUERY_HEADS, KV_HEADS = 28, 4
LAYOUT = "zigzag"

CELL, ROW, LEFT, TOP = 10, 18, 170, 62
COLOURS = ("#2f6db5", "#c8642d", "#3f8f5b", "#8a5aa8")
FILE = Path(__file__).parent / "layout.svg"


def draw() -> str:
    """The picture as SVG text."""
    borders = [0, *accumulate(LENGTHS)]
    plan = make_plan(borders, (RING, ULYSSES), layout=LAYOUT)
    heads = deal_heads(QUERY_HEADS, KV_HEADS, ULYSSES)
    right = LEFT + CELL * plan.tokens
    height = TOP + plan.cp * ROW + RING * 8 + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 260} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{right + 260}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 18, f"One pack of {plan.tokens} tokens: documents of {', '.join(map(str, LENGTHS))}"),
    ]
    for number, (start, end) in enumerate(pairwise(borders)):
        box = f'x="{LEFT + CELL * start}" y="28" width="{CELL * (end - start)}" height="20"'
        parts.append(f'<rect {box} fill="#eeeeee" stroke="#444444"/>')
        parts.append(_text(LEFT + CELL * (start + end) / 2, 42, "ABC"[number], anchor="middle"))
    bottom = TOP + plan.cp * ROW + (RING - 1) * 8
    for border in borders:
        x = LEFT + CELL * border
        parts.append(f'<line x1="{x}" y1="48" x2="{x}" y2="{bottom}" stroke="#bbbbbb" stroke-dasharray="3 3"/>')
    mean = sum(map(plan.causal_work, range(plan.cp))) / RING
    for rank in range(plan.cp):
        ring_rank, inner = divmod(rank, ULYSSES)
        y = TOP + rank * ROW + ring_rank * 8
        for pieces, opacity in ((plan.ring_pieces(ring_rank), 0.22), (plan.pieces[rank], 1.0)):
            for document, start, end in pieces:
                x, width = LEFT + CELL * (borders[document] + start), CELL * (end - start)
                parts.append(
                    f'<rect x="{x}" y="{y + 2}" width="{width}" height="{ROW - 4}" fill="{COLOURS[ring_rank]}" '
                    f'fill-opacity="{opacity}"/>'
                )
        share = heads[inner]
        parts.append(_text(8, y + 13, f"rank {rank} (ring {ring_rank}, ulysses {inner})"))
        parts.append(_text(right + 10, y + 13, f"{plan.local_tokens(rank)} tokens"))
        parts.append(_text(right + 75, y + 13, f"q heads {share.query_start}-{share.query_end - 1}"))
        if inner == 0:
            work = sum(plan.causal_work(rank + other) for other in range(ULYSSES))
            parts.append(_text(right + 170, y + 13, f"{work / mean:.1%} work"))
    parts.append(
        _text(
            LEFT, height - 12, "Full colour: tokens that a rank owns. Pale: what it attends for as well, with its own heads only."
        )
    )
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222222">{words}</text>'


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
