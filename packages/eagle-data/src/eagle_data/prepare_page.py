"""The page of a preparation: what was read and rejected, what samples gave up, distributions, and pictures of some samples.

One HTML file that needs nothing beside it: charts are drawn as SVG, pictures are embedded small. Made from what preparation left
in its folder, so it can be made again at any time; the only media opened are those of the samples shown.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image, ImageDraw

from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.errors import MediaError
from eagle_data.fetch import Fetch
from eagle_data.images import load_image
from eagle_data.media_index import PreparedMedia
from eagle_data.prepare_counts import LENGTH_BINS, SHARE_BINS
from eagle_data.units import units_from_json

REJECTS_SHOWN = 20
_SIDE, _SHOWN = 200, 200
_FRAMES = 3
_STYLE = """
:root{--ink:#1c1e22;--faint:#646a73;--line:#dcddda;--paper:#fafaf8;--card:#fff;--bar:#0068b5;--warn:#b3401e}
@media (prefers-color-scheme:dark){:root{
--ink:#e8e8e6;--faint:#a0a5ad;--line:#3a3d42;--paper:#17181b;--card:#1f2125;--bar:#5fb0f0;--warn:#f08a66}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:2rem auto;
padding:0 1.25rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.3rem;margin:2.5rem 0 .5rem}h3{font-size:1rem;margin:1.5rem 0 .5rem}
p,.faint{color:var(--faint)}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:right;vertical-align:top;padding:.35rem .6rem;
border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--faint)}th:first-child,td:first-child,td.text,th.text{text-align:left}
td{white-space:nowrap}td.text{white-space:normal;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.75rem 1rem}
.card h4{margin:0 0 .25rem;font-size:.9rem}svg text{fill:var(--faint);font:10px system-ui,sans-serif}svg rect{fill:var(--bar)}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:1rem}
.samples p{margin:.3rem 0;overflow-wrap:anywhere}
.pictures{display:flex;flex-wrap:wrap;gap:6px;margin:.25rem 0}.pictures img{border-radius:4px;max-width:100%}
.say{color:var(--ink)}.warn{color:var(--warn)}.scroll{overflow-x:auto}
"""


def write_page(out: str | Path, datasets: Iterable[str], *, fetch: Fetch | None = None) -> Path:
    """Write `<out>/report.html` on the prepared `datasets` and give its path. `fetch` is leave to fetch the pictures shown."""
    out = Path(out)
    parts = []
    for name in datasets:
        done = json.loads((out / name / "done.json").read_text(encoding="utf-8"))
        parts.append(_dataset(name, done, out / name, fetch))
    body = "\n".join(parts)
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Prepared data</title><style>{_STYLE}</style></head><body>
<h1>Prepared data</h1>
<p>Every context length has a plan of its own for every sample. A degraded sample shows fewer frames or tiles than wished, so
that all of its text fits.</p>
{body}
</body></html>
"""
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _dataset(name: str, done: Mapping[str, Any], folder: Path, fetch: Fetch | None) -> str:
    report = done["report"]
    lines = [
        f"<h2>{escape(name)}</h2>",
        f"<p>{report['read']:,} read, {report['prepared']:,} prepared, {report['rejected']:,} rejected</p>",
        _lengths_table(report),
    ]
    for n, charts in sorted(done["charts"].items(), key=lambda pair: int(pair[0])):
        lines += [f"<h3>Context {int(n):,}</h3>", '<div class="charts">', *_charts(int(n), charts), "</div>"]
    if report["rejected"]:
        lines.append(_rejects(report["reasons"], folder / "rejects.jsonl"))
    if done["examples"]:
        media = PreparedMedia(folder, fetch=fetch)
        lines += ["<h3>Some samples</h3>", '<div class="samples">', *(_example(e, media) for e in done["examples"]), "</div>"]
    return "\n".join(lines)


def _lengths_table(report: Mapping[str, Any]) -> str:
    head = (
        "context",
        "degraded",
        "fewer frames",
        "fewer tiles",
        "too long",
        "frames shown",
        "image tiles",
        "visual",
        "of optimum",
    )
    rows = []
    for n, shown in report["shown"].items():
        if not shown:
            rows.append([f"{int(n):,}", *["–"] * 3, f"{report['too_long'][n]:,}", *["–"] * 4])
            continue
        rows.append(
            [
                *(f"{value:,}" for value in (int(n), report["degraded"][n], shown["fewer_frames"], shown["fewer_tiles"])),
                f"{report['too_long'][n]:,}",
                _of(shown["frames"], shown["wished_frames"]),
                _of(shown["image_tiles"], shown["wished_image_tiles"]),
                _percent(shown["visual_tokens"], shown["tokens"]),
                _percent(shown["visual_tokens"], shown["optimum_visual_tokens"]),
            ]
        )
    return _table(head, rows) + (
        '<p class="faint">Frames include the pages of documents. Visual: share of all tokens. Of optimum: visual tokens beside '
        "the most that Eq. 2 of the Eagle 2.5 paper could show.</p>"
    )


def _of(shown: int, wished: int) -> str:
    return f"{shown:,} of {wished:,}" if wished else "–"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=text' if i in text else ''}>{escape(value)}</{tag}>" for i, value in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


def _charts(n: int, charts: Mapping[str, Mapping[str, int]]) -> list[str]:
    shares = [f"{100 * b // SHARE_BINS}" for b in range(SHARE_BINS)]
    edges = [f"{n * b // LENGTH_BINS:,}" for b in range(LENGTH_BINS)]
    drawn = [_chart("Tokens of a sample", edges, _filled(charts["length"], LENGTH_BINS), "tokens, from the figure on")]
    for chart, title, unit in (
        ("frames", "Frames and pages of a sample", "frames and pages"),
        ("tiles", "Tiles of a sample, frames among them", "tiles"),
    ):
        top = max(map(int, charts[chart]), default=0)
        if top:
            labels = ["0", *(f"{1 << (b - 1):,}" for b in range(1, top + 1))]
            drawn.append(_chart(title, labels, _filled(charts[chart], top + 1), f"{unit}, from the figure on to its double"))
    for chart, title in (
        ("frames_kept", "Frames kept, of those degraded"),
        ("tiles_kept", "Image tiles kept, of those degraded"),
    ):
        if charts[chart]:
            drawn.append(_chart(title, shares, _filled(charts[chart], SHARE_BINS), "% of the wish, from the figure on"))
    return drawn


def _filled(bins: Mapping[str, int], count: int) -> list[int]:
    return [bins.get(str(b), 0) for b in range(count)]


def _chart(title: str, labels: Sequence[str], values: Sequence[int], unit: str) -> str:
    """A bar chart of how many samples lie from each label on; a bar's tooltip says how many, and the largest is written out."""
    width, height, top, base = 300, 120, 14, 18
    step, most = width / len(values), max(*values, 1)
    bars, ticks = [], []
    every = max(1, round(len(values) / 5))
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        tall = (height - top - base) * value / most
        tall = max(tall, 1.5) if value else 0
        bars.append(
            f'<rect x="{i * step + 0.5:.1f}" y="{height - base - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}">'
            f"<title>from {escape(label)}: {value:,} sample{'s' * (value != 1)}</title></rect>"
        )
        if value == most and not any("text-anchor" in bar for bar in bars[:-1]):
            anchor = "start" if i < len(values) / 2 else "end"
            at = i * step if anchor == "start" else (i + 1) * step
            bars.append(f'<text x="{at:.1f}" y="{top - 4}" text-anchor="{anchor}">{value:,} sample{"s" * (value != 1)}</text>')
        if i % every == 0:
            ticks.append(f'<text x="{i * step + 0.5:.1f}" y="{height - 5}">{escape(label)}</text>')
    return (
        f'<div class="card"><h4>{escape(title)}</h4><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(bars)}{"".join(ticks)}</svg><span class="faint">{escape(unit)}</span></div>'
    )


def _rejects(reasons: Mapping[str, int], path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        entries = [json.loads(line) for line in islice(lines, REJECTS_SHOWN)]
    counts = _table(("reason", "lines"), [(reason, f"{count:,}") for reason, count in reasons.items()])
    rows = [(f"{entry['file']}:{entry['line']}", entry["kind"], entry["reason"]) for entry in entries]
    listed = _table(("where", "reason", "in words"), rows, text=(0, 1, 2))
    total = sum(reasons.values())
    more = f"The first {len(entries)} of {total:,}; rejects.jsonl has them all." if total > len(entries) else ""
    note = f'<p class="faint">{more}</p>'
    return f"<h3>Rejected</h3>{counts}<h3>Where and why</h3>{listed}{note}"


def _example(example: Mapping[str, Any], media: PreparedMedia) -> str:
    pictures, problems = [], []
    for unit in units_from_json(json.dumps(example["units"])):
        try:
            pictures += _pictures(unit, media)
        except MediaError as error:
            problems.append(f'<p class="warn">{escape(str(error))}</p>')
    question, answer = (escape(shorten(example[name], _SHOWN, placeholder=" …")) for name in ("question", "answer"))
    gave_up = f", gave up: {', '.join(example['degraded'])} shown" if example["degraded"] else ""
    facts = f"{example['tokens']:,} tokens, {example['tiles']:,} tiles at context {example['context_length']:,}{gave_up}"
    return (
        f'<div class="card"><div class="pictures">{"".join(pictures)}</div>{"".join(problems)}'
        f'<p class="say"><b>Q</b> {question}</p><p class="say"><b>A</b> {answer}</p>'
        f'<p class="faint">{escape(facts)}<br>{escape(example["where"])}</p></div>'
    )


def _pictures(unit: ImageUnit | VideoUnit, media: PreparedMedia) -> list[str]:
    """An image with the cuts of its tiles drawn in, or the first, middle and last frame taken of a video."""
    if isinstance(unit, ImageUnit):
        picture = load_image(unit.source, at_least=(_SIDE, _SIDE), fetch=media.fetch)
        picture.thumbnail((_SIDE, _SIDE))
        pen = ImageDraw.Draw(picture)
        for axis, count in enumerate(unit.grid):
            for cut in range(1, count):
                at = round(cut * picture.size[axis] / count)
                pen.line((at, 0, at, picture.height) if axis == 0 else (0, at, picture.width, at), fill=(255, 255, 255))
        title = f"{unit.path}: {unit.grid[0]} x {unit.grid[1]}, {unit.tiles} tiles"
        return [_img(picture, title)]
    count = len(unit.indices)
    chosen = [unit.indices[i] for i in sorted({0, count // 2, count - 1})][:_FRAMES]
    with media.open_video(unit.path, start=unit.start, end=unit.end) as video:
        metadata = video.metadata
        scale = min(_SIDE / 2 / max(metadata.width, metadata.height), 1.0)
        size = (max(round(metadata.width * scale), 1), max(round(metadata.height * scale), 1))
        frames = video.frames_at(chosen, size=size)
        return [
            _img(Image.fromarray(pixels), f"{unit.path}: frame {index}, {count} frames taken")
            for pixels, index in zip(frames.pixels, chosen, strict=True)
        ]


def _img(picture: Image.Image, title: str) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(title)}" title="{escape(title)}">'
