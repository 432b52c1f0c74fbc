"""The documentation's page on what degradation sampling keeps and how fast it plans, made from the newest result files.

`nox -s bench_tables` writes it. Promises: no figure of the page is typed. Result files: `results/ads/compare-*.json` of
`ads_compare.py` and `results/ads/rate-*.json` of `ads_rate.py`. Needs nothing but Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "ads"
PAGE = HERE.parent.parent.parent / "docs" / "results" / "degradation-sampling.md"

Row = dict[str, Any]

KINDS = {
    "video": "one video",
    "three_videos": "three videos",
    "video_and_images": "a video and two images",
    "other": "text 34 %, one image 57 %, several images 9 %",
    "document": "a document of 2 to 59 pages",
}

HEAD = """---
hide: [navigation, toc]
---

<!-- Made by packages/eagle-data/benchmarks/ads_tables.py from its result files; edit there. -->

# Degradation sampling, measured

What [Automatic Degradation Sampling](../decisions/ads-open-points.md) keeps of long samples, beside what training code without
it does: frames first (a fixed number, or 2 a second), every image and page in up to 12 tiles, the text behind the pictures, and
the sequence cut at the context length. The samples are made from a seed (`packages/eagle-data/benchmarks/ads_corpus.py`); no file
lies behind them.

- **text lost**: tokens of the conversation behind the cut. **answers cut**: samples that lose at least one token of an answer.
- **visual budget used**: tokens of pictures and their wrappers that are kept, over what fits beside the whole text (or over what
  is wished, if that is less). Above 100 % pictures took the room of text.
- **rejected**: samples whose text and 8 frames for each video do not fit, counted in no other column; the rivals never reject,
  they cut.
"""


def newest(topic: str) -> dict[str, Any]:
    """The content of the newest result file of a topic."""
    return json.loads(max(RESULTS.glob(f"{topic}-*.json")).read_text(encoding="utf-8"))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def share(part: float, whole: float) -> str:
    """A percentage; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def summed(rows: Sequence[Row]) -> Row:
    """The rows of several kinds of samples as one."""
    return {key: sum(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], int)}


def cells(name: str, row: Row) -> list[str]:
    """What is kept, as table cells."""
    return [
        f"**{name}**" if name == "ADS" else name,
        share(row["text_lost"], row["text"]),
        share(row["answers_cut"], row["samples"]),
        share(row["visual"], row["visual_budget"]),
        share(row["rejected"], row["samples"] + row["rejected"]),
    ]


COLUMNS = ["sampling", "text lost", "answers cut", "visual budget used", "rejected"]


def comparison(rows: Sequence[Row]) -> list[str]:
    """A table over all samples with video at each context length, then one over the rest."""
    contexts = sorted({row["shape"]["context"] for row in rows})
    names = list(dict.fromkeys(row["impl"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    with_video = [case for case in cases if "video" in case]
    rest = [case for case in cases if case not in with_video]
    parts: list[str] = []
    for title, chosen in (("Samples with video", with_video), ("Images and documents", rest)):
        parts += [f"## {title}", "", f"{'; '.join(chosen)}: as many samples of each.", ""]
        body = []
        for context in contexts:
            for name in names:
                found = [
                    row for row in rows if (row["impl"], row["shape"]["context"]) == (name, context) and row["case"] in chosen
                ]
                if len(found) == len(chosen):
                    shown = "12 tiles an image and page" if chosen is rest and name != "ADS" else name
                    body.append([str(context), *cells(shown, summed(found))])
        unique = list({tuple(line): line for line in body}.values())
        parts += [*table(["context", *COLUMNS], unique), ""]
    return parts


def gaps(rows: Sequence[Row]) -> list[str]:
    """Ours for every kind and context: the fill, the least fill, the gap to the optimum of Eq. 2."""
    body = [
        [
            row["case"],
            str(row["shape"]["context"]),
            share(row["visual"], row["visual_budget"]),
            f"{100 * row['least_used']:.1f} %" if row["least_used"] < 1 else "-",
            f"{100 * row['least_used_tiled']:.1f} %" if row["least_used_tiled"] < 1 else "-",
            f"{100 * (1 - row['tiles'] / row['optimum_tiles']):.2f} %",
        ]
        for row in rows
        if row["impl"] == "ADS"
    ]
    words = (
        "Plans take frames before tiles and one tile limit for all images, so they may show fewer visual tokens than the "
        "optimum of the paper's Eq. 2, which takes any mixture (same exact costs). The least fill is that of the worst sample: "
        "where frames were given up, less than one frame is left; where only tiles were, less than the next tile limit would "
        "cost, which for many like pages is a lot."
    )
    head = ["samples", "context", "budget used", "least, frames given up", "least, only tiles given up", "gap to Eq. 2"]
    return ["## The fill, and the gap to the optimum", "", fill(words, 128), "", *table(head, body), ""]


def rates(rows: Sequence[Row]) -> list[str]:
    """Samples a second on one core."""
    found = {(row["case"], row["shape"]["context"]): row for row in rows}
    body = []
    for kind, meaning in KINDS.items():
        for context in sorted({row["shape"]["context"] for row in rows}):
            pair = [found.get((f"{start}_{kind}", context)) for start in ("plan", "plan_and_tokenise")]
            figures = [f"{row['value']:.0f} ({row['spread']:.0%})" for row in pair if row]
            if len(figures) == len(pair):
                body.append([meaning, str(context), *figures])
    words = (
        "Samples a second of CPU time on one core, median of the runs (range over median). Planning has the text's ids, which "
        "encoding the sample needs anyway; the last column tokenises the text too."
    )
    head = ["samples", "context", "planning", "planning and tokenising"]
    return ["## Speed", "", fill(words, 128), "", *table(head, body), ""]


def provenance(content: dict[str, Any]) -> str:
    """On what and by which command."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return f"- {content['hardware']}, {content['date']}, commit {content['commit'][:12]} ({versions}). `{content['command']}`."


def page() -> str:
    """The whole page."""
    compare, rate = newest("compare"), newest("rate")
    parts = [
        HEAD,
        *comparison(compare["rows"]),
        *gaps(compare["rows"]),
        *rates(rate["rows"]),
        *("## Measured on", "", provenance(compare), provenance(rate)),
    ]
    return "\n".join(parts) + "\n"
