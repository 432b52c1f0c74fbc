"""Bars of measured figures as one inline SVG: readable on a light and a dark page, without a script or a plotting library.

Promises: text takes the page's own colour, every bar carries its figure. Not for: choosing what is drawn (`_bench_tables.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABEL, FIGURE, ROW, GAP = 760, 190, 60, 16, 14
OURS, PEER = "#00897b", "#9e9e9e"


@dataclass(frozen=True)
class Group:
    """Bars of one case: its name, a figure for each implementation, ours first, and the ceiling or floor of the case if any."""

    name: str
    figures: Mapping[str, float]
    limit: float | None = None


def bars(title: str, unit: str, groups: Sequence[Group], decimals: int) -> str:
    """An SVG `<figure>`; every group has its own scale, and a dashed line marks its limit."""
    room = WIDTH - LABEL - FIGURE
    parts, y = [], 28
    for group in groups:
        parts.append(text(0, y + 12, group.name, weight="bold"))
        y += 18
        top = y
        longest = max(*group.figures.values(), group.limit or 0)
        for name, value in group.figures.items():
            length = room * value / longest
            parts.append(text(LABEL - 8, y + 12, name, anchor="end"))
            fill = OURS if name == "eagle" else PEER
            parts.append(f'<rect x="{LABEL}" y="{y + 2}" width="{length:.1f}" height="{ROW - 4}" rx="2" fill="{fill}"/>')
            parts.append(text(LABEL + length + 5, y + 12, f"{value:.{decimals}f}"))
            y += ROW
        if group.limit:
            x = LABEL + room * group.limit / longest
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 1}" y2="{y + 1}" stroke="currentColor" stroke-dasharray="3 2"/>'
            )
        y += GAP
    heading = text(0, 14, f"{title}, {unit}", weight="bold", size=13)
    return (
        f'<figure style="width: 100%"><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="100%" role="img" '
        f'font-family="system-ui, sans-serif" aria-label="{escape(title)}">{heading}{"".join(parts)}</svg></figure>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal", size: int = 11) -> str:
    """One line of text in the page's colour."""
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(words)}</text>"
    )
