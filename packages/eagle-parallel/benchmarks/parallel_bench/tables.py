"""The documentation's tables of eagle-parallel, made from the rows of its result files.

Promises: rows of two GPUs and rows of one GPU never share a table, and a predicted figure stands in a column that says so. Needs
no torch. `docs/_bench_tables.py` finds this file by its name and asks it for `page` and `readme`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
NO_PAIR = "Two GPUs were not measured: no retention, no rival and no NVLink stands behind this page."


def page(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """All tables, as Markdown lines."""
    return [
        *section("Retention on two GPUs", [*pair(rows)] or [NO_PAIR, ""]),
        *section("One GPU: each rank's own work", compute(rows)),
        *section("Exactness in bfloat16", exactness(rows)),
        *section("Memory and vision", ratios(rows)),
        *section("The planner beside the clock", planner(rows)),
        *section("Targets", targets(verdicts)),
    ]


def readme(rows: Sequence[Row], verdicts: Sequence[Any]) -> list[str]:
    """The short table of the README."""
    found = [row for row in rows if row["impl"] in ("eagle", "eagle_cudnn")]
    real = pair(found)
    return [*(real or [NO_PAIR, ""]), *compute(found, short=True)]


def section(title: str, body: Sequence[str]) -> list[str]:
    """A headed section; nothing without a body."""
    return [f"## {title}", "", *body, ""] if body else []


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)] if body else []


def pair(rows: Sequence[Row]) -> list[str]:
    """Real retentions, R = T(1) / (2 T(2)): rivals beside ours."""
    real = [row for row in rows if row["unit"] == "R" and not row["case"].endswith("_compute")]
    body = [[name(row), pack(row), row["impl"], f"{row['value']:.3f}", f"{row['spread']:.3f}"] for row in real]
    return table(["case", "pack", "implementation", "R", "spread"], body)


def compute(rows: Sequence[Row], *, short: bool = False) -> list[str]:
    """Compute-only rows, with what is predicted for two GPUs."""
    found = [row for row in rows if row["unit"] == "R" and row["case"].endswith("_compute")]
    if not found:
        return []
    head = [
        "case",
        "pack",
        "how",
        "T(1) ms",
        "ranks ms",
        "R of compute",
        "*predicted* R, nothing hidden",
        "*predicted* R, overlap",
    ]
    body = [
        [
            name(row),
            pack(row),
            row["impl"] if short else how(row),
            f"{row['one_gpu_ms']:.2f}",
            " / ".join(f"{value:.2f}" for value in row["rank_ms"]),
            f"{row['value']:.3f}",
            f"{row['prediction_without_overlap']:.3f}",
            f"{row['prediction_with_overlap']:.3f}" if "prediction_with_overlap" in row else "-",
        ]
        for row in found
    ]
    words = (
        "Each rank's kernels, packing and sums, forward and backward, timed one rank after the other on one GPU; T(1) is the "
        "bare kernel call. R of compute = T(1) / (ranks x slowest rank) bounds the retention from above. The predictions add the "
        f"seconds that the exchanged bytes would take at {found[0]['wire_rate']}; they are not measured."
    )
    return [words, "", *table(head, body)]


def exactness(rows: Sequence[Row]) -> list[str]:
    """Errors against float64 in multiples of the bare call's."""
    body = [
        [name(row), pack(row), how(row), *(f"{row['error'][part] / row['bare_error'][part]:.3f}" for part in row["error"])]
        for row in rows
        if "error" in row
    ]
    words = "Error against float64 as a multiple of the bare call's own error, on the inputs that were timed."
    return [words, "", *table(["case", "pack", "how", "out", "dq", "dk", "dv"], body)] if body else []


def ratios(rows: Sequence[Row]) -> list[str]:
    """What one of two ranks needs over what one GPU needs."""
    body = []
    for row in rows:
        if row["unit"] == "ratio":
            unit = "GiB" if "rank_gib" in row else "ms"
            one = row.get("one_gpu_gib", row.get("bare_gib", row.get("one_gpu_ms", 0.0)))
            many = row.get("rank_gib", row.get("rank_ms", 0.0))
            most = max(many) if isinstance(many, list) else many
            body.append([name(row), pack(row), row["impl"], f"{one:.2f} {unit}", f"{most:.2f} {unit}", f"{row['value']:.3f}"])
    return table(["case", "size", "how", "one GPU", "one rank of two", "ratio"], body)


def planner(rows: Sequence[Row]) -> list[str]:
    """Predicted times of compute beside measured ones; points that calibrated the planner are marked."""
    body = []
    for row in rows:
        if "planner" in row:
            said = row["planner"]
            mark = " (calibrated on it)" if said["one_gpu_fitted"] else ""
            one, many = f"{said['one_gpu_error']:+.1%}{mark}", f"{said['rank_error']:+.1%}"
            body.append([name(row), pack(row), how(row), f"{said['one_gpu_ms']:.2f}", one, f"{said['rank_ms']:.2f}", many])
    return table(["case", "pack", "how", "predicted T(1) ms", "error", "predicted rank ms", "error"], body)


def targets(verdicts: Sequence[Any]) -> list[str]:
    """Every target with what was measured."""
    signs = {True: "reached", False: "**not reached**", None: "not measured"}
    body = [[verdict.case, verdict.text, verdict.measured, signs[verdict.reached]] for verdict in verdicts]
    return table(["case", "target", "measured", "reached?"], body)


def name(row: Row) -> str:
    """The case without the mark of one GPU."""
    return row["case"].removesuffix("_compute")


def pack(row: Row) -> str:
    """Tokens, documents and seed of a row, in words."""
    shape = row["shape"]
    words = [f"{shape[key]} {key}" for key in ("tokens", "documents", "tiles", "layers") if key in shape]
    return ", ".join([*words, *((f"seed {shape['seed']}",) if "seed" in shape else ())])


def how(row: Row) -> str:
    """Kernel, algorithm and layout of a row."""
    if "algorithm" not in row:
        return row["impl"]
    groups = next((f", {part.removeprefix('groups')} head groups" for part in row["impl"].split("_") if "groups" in part), "")
    spread = "Ulysses" if row["cp_ulysses"] > 1 else f"{row['algorithm'].replace('_', '-')}, {row['layout']}"
    return f"{row['kernel']}, {spread}{groups}"
