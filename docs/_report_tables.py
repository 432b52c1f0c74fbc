"""Tables of measured runs in the documentation, made from the committed report files when the site is built.

Promises: `<!-- report: FILE -->` in a page becomes the tables of that run's `report.json`. No figure on such a page is typed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MARK = "<!-- report: "


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the first mark of a page by the tables of the report it names, beside the page."""
    if MARK not in markdown:
        return markdown
    name = markdown.split(MARK)[1].split(" -->")[0]
    report = json.loads((Path(page.file.abs_src_path).parent / name).read_text(encoding="utf-8"))
    return markdown.replace(f"{MARK}{name} -->", tables(report))


def tables(report: dict[str, Any]) -> str:
    """Accuracy per task and the stages of a run, as Markdown."""
    lines = [
        f"{report['seconds']:.0f} seconds, {report['peak_rss_gib']:.2f} GiB at most, seed {report['seed']}, "
        f"{report['parameters']:,} parameters.",
        "",
        "| task | questions | exact match | pictures replaced by noise | always the majority answer |",
        "|---|---|---|---|---|",
    ]
    tasks = [task for task in report["accuracy"] if task != "overall"] + ["overall"]
    for task in tasks:
        rates = [report[key].get(task) for key in ("accuracy", "accuracy_noise", "accuracy_majority")]
        shown = " | ".join("-" if rate is None else f"{rate:.1%}" for rate in rates)
        lines.append(f"| {task} | {report['questions'][task]} | {shown} |")
    lines += ["", "| stage | context length | steps | tokens | first loss | last loss |", "|---|---|---|---|---|---|"]
    for stage in (*report["pretraining"], *report["stages"]):
        lines.append(
            f"| {stage['name']} | {stage['context_length'] or '-'} | {stage['steps']} | {stage['tokens']:,} "
            f"| {stage['loss_first']:.3f} | {stage['loss_last']:.3f} |"
        )
    return "\n".join(lines)
