"""The documentation's tables of eagle-data's video reader, made from the rows of its result files.

Promises: every figure comes from a row; a reader that gave wrong frames, or opens without an exact index, carries a star. Needs
nothing but Python. `docs/_bench_tables.py` finds this file by its name and asks it for `page` and `readme`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
OURS = "eagle"
INEXACT = "_inexact"
STAR = "\\* gave another frame for some number, or knows the frames from the header only; not compared with."


def page(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """All tables, as Markdown lines."""
    opening = [row for row in rows if case_of(row).startswith("open")]
    reading = [row for row in rows if case_of(row).startswith(("uniform", "segment"))]
    return [
        *section(
            "Opening, to an exact index", "Milliseconds, warm cache, and the share of the file that was read.", opened(opening)
        ),
        *section(
            "Reading",
            "Seconds from the closed file to one array of RGB pictures; the last column is ours over it.",
            times(reading),
        ),
        *section("Memory", "Peak growth of the process, the returned array included.", memory(rows)),
        *section("Frames decoded", "Beside what the groups of pictures ask for, counted from the packets.", decoded(rows)),
        *section("Targets", "", targets(verdicts)),
        *([STAR, ""] if any(row["case"].endswith(INEXACT) for row in rows) else []),
    ]


def readme(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """The short table of the README: ours, the best exact peer and the targets of every case."""
    verdict_of: dict[str, list[str]] = {}
    for verdict in verdicts:
        verdict_of.setdefault(verdict.case, []).append(words_of(verdict))
    body = []
    for case in cases_of(rows):
        mine = [row for row in rows if row["case"] == case and row["impl"] == OURS]
        peer = best_peer(rows, case)
        ours = "<br>".join(figure(row) for row in mine) or "-"
        body.append([case, ours, f"{figure(peer)} ({peer['impl']})" if peer else "-", "<br>".join(verdict_of.get(case, ["-"]))])
    return table(["case", "ours", "best exact peer", "target: reached?"], body)


def section(title: str, words: str, body: Sequence[str]) -> list[str]:
    """A headed section; nothing without a body."""
    return [f"## {title}", "", *([words, ""] if words else []), *body, ""] if body else []


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)] if body else []


def case_of(row: Row) -> str:
    """The case's name without the mark of an inexact answer."""
    return row["case"].removesuffix(INEXACT)


def cases_of(rows: Sequence[Row]) -> list[str]:
    """Cases in order of appearance."""
    return list(dict.fromkeys(case_of(row) for row in rows))


def readers_of(rows: Sequence[Row]) -> list[str]:
    """Readers in order of appearance, ours first."""
    return sorted(dict.fromkeys(row["impl"] for row in rows), key=lambda impl: not impl.startswith(OURS))


def best_peer(rows: Sequence[Row], case: str) -> Row | None:
    """The fastest exact peer of a case, or the leanest where a case records memory."""
    peers = [row for row in rows if row["case"] == case and not row["impl"].startswith(OURS)]
    return min(peers, key=lambda row: row.get("peak_gib", row["value"]), default=None)


def figure(row: Row) -> str:
    """Milliseconds for an opening, memory where there is one, else seconds; a star where the answer is not exact."""
    star = "*" if row["case"].endswith(INEXACT) else ""
    if "peak_gib" in row:
        return f"+{row['peak_gib'] * 2**30 / 1e6:.0f} MB at {row['shape']['width']} x {row['shape']['height']}{star}"
    return f"{row['value'] * 1000:.1f} ms{star}" if case_of(row).startswith("open") else f"{row['value']:.2f} s{star}"


def opened(rows: Sequence[Row]) -> list[str]:
    """A line a video and reader."""
    return table(
        ["case", "reader", "ms", "spread", "read"],
        [
            [
                case_of(row),
                row["impl"],
                figure(row).replace(" ms", ""),
                f"{row['spread']:.2f}",
                f"{row['read_bytes'] / 1e6:.2f} MB ({row['read_bytes'] / row['file_bytes']:.1%})",
            ]
            for row in rows
        ],
    )


def times(rows: Sequence[Row]) -> list[str]:
    """A line a case, a column a reader; where only ours has a case, the peers of the same number of uniform frames."""
    readers = readers_of(rows)
    body = []
    for case in cases_of(rows):
        found = {row["impl"]: row for row in rows if case_of(row) == case}
        peer = best_peer(rows, case) or best_peer(rows, case.replace("segment", "uniform"))
        ratio = f"{peer['value'] / found[OURS]['value']:.2f}x {peer['impl']}" if peer and OURS in found else "-"
        cells = [figure(found[reader]).replace(" s", "") if reader in found else "-" for reader in readers]
        body.append([case, *cells, ratio])
    return table(["case", *readers, "best exact peer / ours"], body)


def memory(rows: Sequence[Row]) -> list[str]:
    """A line a delivered size, a column a reader."""
    found = [row for row in rows if "peak_gib" in row]
    readers = readers_of(found)
    sizes = dict.fromkeys((row["shape"]["width"], row["shape"]["height"]) for row in found)
    body = []
    for width, height in sizes:
        of_size = {row["impl"]: row for row in found if (row["shape"]["width"], row["shape"]["height"]) == (width, height)}
        cells = [f"{of_size[reader]['peak_gib'] * 2**30 / 1e6:.0f}" if reader in of_size else "-" for reader in readers]
        body.append([f"512 frames of A at {width} x {height}", *cells])
    return table(["MB", *readers], body)


def decoded(rows: Sequence[Row]) -> list[str]:
    """Ours, beside both bounds."""
    found = [row for row in rows if "decoded" in row and "peak_gib" not in row]
    body = [
        [
            row["case"],
            row["impl"],
            str(row["groups"]),
            str(row["bound_to_target"]),
            str(row["bound_references"]),
            str(row["decoded"]),
            f"{row['decoded'] / row['bound_references']:.3f}x",
        ]
        for row in found
    ]
    head = [
        "case",
        "reader",
        "groups touched",
        "first bound: up to the targets",
        "second bound: references only",
        "decoded",
        "of the second",
    ]
    return table(head, body)


def targets(verdicts: Sequence[Any]) -> list[str]:
    """Every bar and what was reached."""
    return table(["case", "target"], [[verdict.case, words_of(verdict)] for verdict in verdicts])


def words_of(verdict: Any) -> str:
    """A verdict in words."""
    state = {True: "reached", False: "**not reached**", None: "not measured"}[verdict.reached]
    return f"{verdict.text}: {state}" + (f" ({verdict.measured})" if verdict.reached is not None else "")
