"""The documentation's page on packing, dealing and resuming, made from the newest result files.

`nox -s bench_tables` writes it. Promises: no figure of the page is typed. Result files: `results/packing/mix-*.json` of
`packing_mix.py` and `results/packing/resume-*.json` of `loader_resume.py`. Needs only Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "packing"
PAGE = HERE.parent.parent.parent / "docs" / "results" / "packing.md"

RESUMED = {
    "dataset_opened": "a prepared dataset is opened",
    "loader_made": "a loader is made",
    "loader_resumed": "a new loader takes the state and has its next pack's samples",
    "opened_and_resumed": "all of it in a fresh process, imports done",
}

HEAD = """---
hide: [navigation, toc]
---

<!-- Made by packages/eagle-data/benchmarks/packing_tables.py from its result files; edit there. -->

# Packing and resuming, measured

Samples of a mix of text, images and videos with long tails are packed under two budgets, tokens and tiles, and packs of like cost
are dealt to the same step, out of a window of 16 steps of {ranks} ranks.

- **filled**: of the packs' budgets, the last ones of the epoch included. A budget that does not bind cannot be full.
- **slowest rank**: the mean over steps of the highest cost over the mean cost of the ranks' packs; **undealt**: in packing order.
- **samples/s**: of one core, from lengths to dealt packs, median of the runs.
"""


def newest(kind: str) -> dict[str, Any]:
    """The content of the newest result file of a kind."""
    return json.loads(max(RESULTS.glob(f"{kind}-*.json")).read_text(encoding="utf-8"))


def table(*rows: list[str]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def packing(result: dict[str, Any]) -> str:
    """A line for each tile budget."""
    body = [
        [
            str(row["shape"]["context_length"]),
            str(row["shape"]["max_tiles"] or "none"),
            percent(row["token_fill"]),
            percent(row["tile_fill"]),
            f"{row['balance']:.3f}",
            f"{row['balance_undealt']:.3f}",
            f"{row['value'] / 1000:.0f} thousand",
        ]
        for row in result["rows"]
    ]
    head = ["tokens a pack", "tiles a pack", "tokens filled", "tiles filled", "slowest rank", "undealt", "samples/s"]
    return table(head, *body)


def resuming(result: dict[str, Any]) -> str:
    """A line for each thing that was timed."""
    body = [
        [
            RESUMED[row["case"]],
            f"{row['shape']['rows'] / 1e6:g} million",
            f"{row['value']:.2f} s",
            "-" if row.get("state_bytes") is None else f"{row['state_bytes'] / 1000:.1f} kB",
            "-" if row.get("peak_gib") is None else f"{row['peak_gib']:.2f} GiB",
        ]
        for row in result["rows"]
    ]
    return table(["what", "rows", "median", "state", "peak memory"], *body)


def said_by(result: dict[str, Any]) -> str:
    return f"- {result['hardware']}, {result['date']}, commit {result['commit'][:12]}. `{result['command']}`."


def page() -> str:
    """The whole page."""
    mix, resume = newest("mix"), newest("resume")
    parts = (
        HEAD.format(ranks=mix["rows"][0]["shape"]["ranks"]),
        packing(mix),
        "\n## In the middle of an epoch\n",
        resuming(resume),
        "\n## Measured on\n",
        said_by(mix),
        said_by(resume),
    )
    return "\n".join(parts) + "\n"
