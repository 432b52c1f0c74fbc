"""The documentation's page on what preparation costs, made from the newest result file.

`nox -s bench_tables` writes it. Promises: no figure of the page is typed. Result files: `results/prepare/rate-*.json`
of `prepare_rate.py`. Needs only Python.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "prepare"
PAGE = HERE.parent.parent.parent / "docs" / "results" / "preparation.md"

CASES = {
    "start": "one line",
    "cold": "from nothing",
    "again": "nothing changed",
    "edited_neighbours": "1 % of lines edited, neighbours",
    "edited_scattered": "1 % of lines edited, scattered",
}

HEAD = """---
hide: [navigation, toc]
---

<!-- Made by packages/eagle-data/benchmarks/prepare_tables.py from its result file; edit there. -->

# Preparation, measured

`eagle-data prepare` for the context lengths {contexts}, on {hardware}. The lines are made from a seed as fine-tuning
mixes have them: 34 % text, 57 % one image, 5 % several, 4 % a video clip; they draw from {images} JPEG files and {clips} clips.
The tokenizer is small, with few merges. Seconds begin when `prepare` is called and so hold the start of workers. Memory is that
of the process and its workers together.

- **at work**: seconds until a worker process has its first line before it.
- **first group**: seconds until the first group of lines is done.
- **groups redone**: of those that the lines make; an edit may also move the ends of the groups around it.
- **shards written**: of the files that hold the samples of both context lengths; the others were left as they are.
"""


def newest() -> dict[str, Any]:
    """The content of the newest result file."""
    return json.loads(max(RESULTS.glob("rate-*.json")).read_text(encoding="utf-8"))


def page() -> str:
    """The whole page."""
    result = newest()
    rows = [
        [
            "what",
            "engine",
            "workers",
            "lines",
            "lines/s",
            "seconds",
            "of cold",
            "at work",
            "first group",
            "peak GiB",
            "groups redone",
            "shards written",
        ],
        ["---"] * 12,
    ]
    for row in result["rows"]:
        share, redone, first = (row.get(name) for name in ("share_of_cold", "groups_redone", "first_group_seconds"))
        start, written = row.get("start_s"), row.get("shards_written")
        rows.append(
            [
                CASES[row["case"]],
                row["impl"],
                str(row["shape"]["workers"]),
                str(row["shape"]["lines"]),
                f"{row['value']:.0f}",
                f"{row['seconds']:.2f}",
                "" if share is None else f"{100 * share:.1f} %",
                "" if start is None else f"{start:.2f} s",
                "" if first is None else f"{first:.2f} s",
                f"{row['peak_gib']:.2f}",
                "" if redone is None else f"{redone} of {row['groups']}",
                "" if written is None else f"{written} of {row['shards']}",
            ]
        )
    contexts = " and ".join(map(str, result["rows"][0]["shape"]["contexts"]))
    head = HEAD.format(contexts=contexts, hardware=result["hardware"], images=result["images"], clips=result["clips"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{head}\n{table}\n\nMeasured on {result['date']}.\n"
