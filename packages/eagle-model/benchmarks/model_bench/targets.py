"""The bars that a prefill of 512 frames at the 8B shape must reach on one H200, as data, and the judgement of rows against them.

Promises: `prefill.py` fails by the same bars that the documentation shows and the tests of the committed results hold. Needs
nothing but Python, so that the documentation can judge too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

SHARE = 0.45
"""The least share of the matrix-product rate that the prefill may reach."""

MOST_GIB = 80
"""The run's peak memory must stay below this."""


@dataclass(frozen=True)
class Verdict:
    """A bar beside what was measured; `reached` is None when it was not."""

    case: str
    text: str
    measured: str
    reached: bool | None


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """One verdict a bar. Of several settings the worst counts; without the figure nothing is judged."""
    shares = [row["value"] for row in rows if row["case"] == "prefill_share_of_matmul"]
    first = [row for row in rows if row["case"] == "prefill_first_token"]
    peaks = [row["peak_gib"] for row in first if row.get("peak_gib") is not None]
    watched = [row["squares"]["tokens_by_tokens"] for row in first if "squares" in row]
    squares = [shape for shapes in watched for shape in shapes]
    return [
        Verdict(
            "prefill_share_of_matmul",
            f"share of the matrix-product rate, at least {SHARE}",
            f"{min(shares):.3f}" if shares else "-",
            min(shares) >= SHARE if shares else None,
        ),
        Verdict(
            "prefill_first_token",
            f"peak memory, below {MOST_GIB} GiB",
            f"{max(peaks):.1f} GiB" if peaks else "-",
            max(peaks) < MOST_GIB if peaks else None,
        ),
        Verdict(
            "prefill_first_token",
            "no tensor of tokens x tokens",
            (f"{len(squares)} made" if squares else "none made") if watched else "-",
            not squares if watched else None,
        ),
    ]
