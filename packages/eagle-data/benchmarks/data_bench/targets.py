"""The figures that eagle-data's video reader must reach, as data, and the judgement of a result file against them.

Promises: every target of a case is one line here, computed from rows of one run only. A target whose rows are missing is neither
reached nor missed. Needs nothing but Python, so that the documentation can judge too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
OURS = "eagle"


@dataclass(frozen=True)
class Rows:
    """The rows of one run, looked up by case and implementation."""

    rows: Sequence[Row]

    def ours(self, case: str, height: int | None = None) -> Row:
        """Our row of a case, at a height where a case has several; KeyError without one."""
        for row in self.rows:
            if (row["case"], row["impl"]) == (case, OURS) and height in (None, row["shape"].get("height")):
                return row
        raise KeyError(f"no row of {OURS} in {case}")

    def best_peer(self, case: str) -> Row:
        """The fastest peer with exact answers; KeyError without one."""
        peers = [row for row in self.rows if row["case"] == case and not row["impl"].startswith(OURS)]
        if not peers:
            raise KeyError(f"no exact peer in {case}")
        return min(peers, key=lambda row: row["value"])


@dataclass(frozen=True)
class Target:
    """One bar of one case: its words, and the figure reached with whether it suffices."""

    case: str
    text: str
    reached: Callable[[Rows], tuple[str, bool]]


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; `reached` is None when its rows are missing."""

    case: str
    text: str
    measured: str
    reached: bool | None


def faster(case: str, bar: float, of: str | None = None) -> Target:
    """Speed at least so many times that of the best exact peer in this case, or in the case `of`."""

    def reached(rows: Rows) -> tuple[str, bool]:
        peer = rows.best_peer(of or case)
        ratio = peer["value"] / rows.ours(case)["value"]
        return f"{ratio:.2f}x {peer['impl']}", ratio >= bar

    return Target(case, f"at least {bar:g}x the best exact peer{f' in {of}' if of else ''}", reached)


def little_read(case: str, bar: float) -> Target:
    """At most this share of the file's bytes read."""

    def reached(rows: Rows) -> tuple[str, bool]:
        row = rows.ours(case)
        share = row["read_bytes"] / row["file_bytes"]
        return f"{share:.2%}", share <= bar

    return Target(case, f"at most {bar:.0%} of the file read", reached)


def memory(case: str, height: int, bar: float) -> Target:
    """Peak growth of at most so many MB (10^6 bytes), at one delivered height."""

    def reached(rows: Rows) -> tuple[str, bool]:
        grown = rows.ours(case, height)["peak_gib"] * 2**30 / 1e6
        return f"{grown:.0f} MB", grown <= bar

    return Target(case, f"at most {bar:g} MB at 448 x {height}", reached)


def decoded(case: str, bar: float) -> Target:
    """Frames decoded, over those that some target refers to."""

    def reached(rows: Rows) -> tuple[str, bool]:
        row = rows.ours(case)
        ratio = row["decoded"] / row["bound_references"]
        return f"{row['decoded']} of {row['bound_references']}, {ratio:.3f}x", ratio <= bar

    return Target(case, f"at most {bar:g}x the frames of the second bound decoded", reached)


TARGETS = (
    faster("open_A", 20),
    little_read("open_A", 0.01),
    faster("open_B", 20),
    little_read("open_B", 0.01),
    faster("uniform32_A", 2.0),
    faster("uniform128_A", 1.9),
    faster("uniform512_A", 1.7),
    memory("resized512_A", 252, 250),
    memory("resized512_A", 448, 400),
    faster("uniform32_B", 2.4),
    faster("uniform128_B", 1.75),
    faster("uniform512_B", 1.65),
    decoded("uniform512_B", 1.02),
    faster("segment128_A", 5.5, of="uniform128_A"),
    faster("segment128_B", 9, of="uniform128_B"),
)


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """A verdict for every target, in their order."""
    verdicts = []
    for target in targets:
        try:
            measured, reached = target.reached(Rows(rows))
        except KeyError:
            measured, reached = "-", None
        verdicts.append(Verdict(target.case, target.text, measured, reached))
    return verdicts
