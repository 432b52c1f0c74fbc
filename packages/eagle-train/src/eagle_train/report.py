"""The report of a run: `report.json` for programs and `report.html`, one page for people.

The page needs no network: the loss curve is drawn as SVG, pictures are embedded. Every figure comes from the values
passed in; nothing is computed here but layout.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from eagle_train.display import duration
from eagle_train.evaluation import Answer, read_media
from eagle_train.run_folder import write_whole


@dataclass(frozen=True)
class Curve:
    """The losses of one stage, one per optimiser step."""

    name: str
    losses: Sequence[float]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Running mean over the last `window` values."""
    sums = np.cumsum(np.insert(np.asarray(values, dtype=np.float64), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return list((sums[ends] - sums[starts]) / (ends - starts))


def loss_svg(curves: Sequence[Curve], *, width: int = 860, height: int = 260) -> str:
    """Loss over steps (log scale), one colour per stage, raw values faint and a running mean on top."""
    left, right, top, bottom = 52, 10, 12, 34
    total = sum(len(curve.losses) for curve in curves)
    values = [loss for curve in curves for loss in curve.losses if loss > 0]
    if total < 2 or not values:
        return ""
    # Below a thousandth of the highest loss nothing is to be seen but noise: such values lie on the lower edge.
    high = np.log10(max(values))
    low = max(np.log10(min(values)), high - 3)
    high = max(high, low + 1e-6)

    def x(step: float) -> float:
        return left + (width - left - right) * step / total

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - np.log10(max(value, 10**low))) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss by step">']
    ticks = [m * 10.0**e for e in range(-5, 3) for m in (1, 2, 5) if low <= np.log10(m * 10.0**e) <= high]
    ticks = ticks if len(ticks) <= 7 else [t for t in ticks if f"{t:e}"[0] == "1"]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    start = 0
    for number, curve in enumerate(curves):
        if not curve.losses:
            continue
        for values_, kind in ((curve.losses, "raw"), (smooth(curve.losses, max(1, len(curve.losses) // 25)), "mean")):
            points = " ".join(f"{x(start + i + 0.5):.1f},{y(value):.1f}" for i, value in enumerate(values_))
            parts.append(f'<polyline class="{kind} c{number % 6}" points="{points}"/>')
        middle, name = x(start + len(curve.losses) / 2), html.escape(curve.name)
        if x(len(curve.losses)) - x(0) >= 7 * len(curve.name):  # a name wider than its stage would run into the next
            parts.append(f'<text x="{middle:.1f}" y="{height - 10}" text-anchor="middle" class="c{number % 6}">{name}</text>')
        start += len(curve.losses)
        if start < total:
            parts.append(f'<line class="cut" x1="{x(start):.1f}" x2="{x(start):.1f}" y1="{top}" y2="{height - bottom}"/>')
    return "".join(parts) + "</svg>"


def data_uri(picture: Image.Image, *, height: int = 96) -> str:
    """A PNG data URI of the picture scaled to `height` pixels, sharp edges kept."""
    scaled = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    scaled.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def show(item: Answer, processor: Any) -> dict[str, Any]:
    """A question as the page shows it: its pictures (frames with their times), the answer and the truth."""
    media = read_media(processor, item.question)
    pictures = [
        {
            "uri": data_uri(image, height=96 if image.height <= image.width else 160),
            "caption": f"{image.width} x {image.height}",
        }
        for image in media.images
    ]
    for video, times in zip(media.videos, media.timestamps, strict=True):
        for frame, second in zip(video, times, strict=True):
            picture = frame if isinstance(frame, Image.Image) else Image.fromarray(np.asarray(frame))
            pictures.append({"uri": data_uri(picture, height=44), "caption": f"{second:.2f} s"})
    return {
        "task": item.question.task,
        "pictures": pictures,
        "question": item.question.text,
        "answer": item.text.strip(),
        "truth": item.question.truth,
        "right": item.right,
    }


def choose_shown(answers: Sequence[Answer], count: int) -> list[Answer]:
    """`count` answers to show, as many of each task, evenly spaced through the set and not chosen by outcome."""
    tasks = list(dict.fromkeys(item.question.task for item in answers))
    shown: list[Answer] = []
    for number, task in enumerate(tasks):
        own = [item for item in answers if item.question.task == task]
        share = count // len(tasks) + (number < count % len(tasks))
        shown += [own[i * len(own) // share] for i in range(min(share, len(own)))] if share else []
    return shown


def write_report(
    folder: Path, values: dict[str, Any], *, curves: Sequence[Curve], shown: Sequence[dict[str, Any]], next_steps: Sequence[str]
) -> None:
    """Write `report.html`, then `report.json` (whose presence says that the run is finished)."""
    template = resources.files("eagle_train").joinpath("templates").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    page = environment.from_string(template).render(
        report=values,
        curve=loss_svg(curves),
        shown=shown,
        next_steps=next_steps,
        tasks=[t for t in values["accuracy"] if t != "overall"],
    )
    write_whole(folder / "report.html", page)
    write_whole(folder / "report.json", json.dumps(values, indent=1) + "\n")


__all__ = ["Curve", "choose_shown", "data_uri", "loss_svg", "show", "smooth", "write_report"]
