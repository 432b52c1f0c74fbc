"""The documentation's tables of eagle-model's prefill, made from the rows of its result files: a column for each way of running.

Promises: every figure comes from a row or from the watched run of its file, and a figure whose runs differ by more than a tenth
says so in its cell. Needs nothing but Python. `docs/_bench_tables.py` finds this file by its name and asks it for `page` and
`readme`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Column = dict[str, Row]

WIDE = 0.1
"""A spread (range over median) from which on a cell tells it."""

LINES = (
    ("prefill_first_token", "seconds to the first token, tower included", "{:.2f}"),
    ("prefill_share_of_matmul", "share of the matrix-product rate", "{:.3f}"),
    ("prefill_rate", "TFLOP/s of the prefill", "{:.0f}"),
    ("matmul_8192", "TFLOP/s of the 8192³ product, same run", "{:.0f}"),
    ("prefill_tokens", "prefill, tokens/s", "{:.0f}"),
    ("decode", "decode after the first token, tokens/s", "{:.1f}"),
)
SHORT = ("prefill_first_token", "prefill_share_of_matmul", "prefill_tokens", "decode")


def page(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """All tables, as Markdown lines."""
    return [
        *section("Prefill and decode", [sizes(rows), "", *figures(rows, [case for case, _, _ in LINES])] if rows else []),
        *section("How often, how alike", runs(rows)),
        *section("Targets", targets(verdicts)),
    ]


def readme(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """The short table of the README."""
    return [sizes(rows), "", *figures(rows, SHORT), "", *targets(verdicts)]


def section(title: str, body: Sequence[str]) -> list[str]:
    """A headed section; nothing without a body."""
    return [f"## {title}", "", *body, ""] if body else []


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)] if body else []


def columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Rows by the way they were run, then by case."""
    found: dict[str, Column] = {}
    for row in rows:
        found.setdefault(way(row), {})[row["case"]] = row
    return found


def way(row: Row) -> str:
    """How a row was run, in words."""
    settings = row["settings"]
    kernels = "eagle-kernels, " if row["impl"].endswith("+kernels") else ""
    backend = "" if settings["sdpa_backend"] == "auto" else f" ({settings['sdpa_backend']})"
    cache = "" if settings["cache"] == "dynamic" else f", {settings['cache']} cache"
    return f"{kernels}{settings['attention']}{backend}{cache}"


def sizes(rows: Sequence[Row]) -> str:
    """What was run, once for each size and type."""
    said = dict.fromkeys(
        f"{row['shape']['frames']} frames, {row['shape']['tokens']} tokens, {row['shape']['new_tokens']} generated, "
        f"{row['settings']['dtype']}"
        for row in rows
    )
    return f"{'; '.join(said)}."


def figures(rows: Sequence[Row], cases: Sequence[str]) -> list[str]:
    """A line for each case that was measured, then memory and the watched run; a column for each way of running."""
    found = columns(rows)
    body = [
        [words, *(cell(column.get(case), form) for column in found.values())]
        for case, words, form in LINES
        if case in cases and any(case in column for column in found.values())
    ]
    firsts = [column.get("prefill_first_token", {}) for column in found.values()]
    body.append(["peak memory, GiB", *(f"{row['peak_gib']:.1f}" if row.get("peak_gib") else "-" for row in firsts)])
    body.append(["tensors of tokens x tokens", *(squares(row) for row in firsts)])
    return table(["", *found], body) if found else []


def cell(row: Row | None, form: str) -> str:
    """A value, with its spread where that is wide."""
    if row is None:
        return "-"
    return form.format(row["value"]) + (f" (spread {row['spread']:.2f})" if row["spread"] >= WIDE else "")


def squares(row: Row) -> str:
    """What the watched run saw."""
    if "squares" not in row:
        return "-"
    seen = row["squares"]
    count = len(seen["tokens_by_tokens"])
    largest = seen["largest_tensor"]
    return f"{count or 'none'}; largest tensor {largest} elements, {largest / row['shape']['tokens'] ** 2:.2f} of tokens²"


def runs(rows: Sequence[Row]) -> list[str]:
    """Runs and spread of every row."""
    names = {case: words for case, words, _ in LINES}
    body = [[names.get(row["case"], row["case"]), way(row), str(row["runs"]), f"{row['spread']:.4f}"] for row in rows]
    return table(["figure", "how", "runs", "spread"], body)


def targets(verdicts: Sequence[Any]) -> list[str]:
    """Every bar with the worst that was measured."""
    signs = {True: "reached", False: "**not reached**", None: "not measured"}
    body = [[verdict.text, verdict.measured, signs[verdict.reached]] for verdict in verdicts]
    return table(["target", "measured", "reached?"], body)
