"""What preparation counts: per group of lines while it works, added up to a dataset's report and the distributions of its page.

Counts only, which can be stored as JSON and added; nothing here opens a file. The same samples give the same counts in whatever
groups and order they were prepared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eagle_data.visual_plan import VisualPlan

CHARTS = ("length", "frames", "tiles", "frames_kept", "tiles_kept")
"""Distributions of a context length. `length` has 20 equal bins; bin b of `frames` and `tiles` holds 2^(b-1) to 2^b - 1, bin 0
none; bin b of `frames_kept` and `tiles_kept`, of the degraded only, holds shares of the wish from b/10."""
LENGTH_BINS, SHARE_BINS = 20, 10


@dataclass(frozen=True)
class DatasetReport:
    """Counts of one dataset.

    `read` lines, `prepared` samples that at least one context length took, `rejected` those that none took;
    `degraded` and `too_long` count samples per context length; `reasons` counts the rejected by kind ("not JSON",
    "missing media", …), so its values add up to `rejected`. `shown` totals, per context length, what the prepared samples show
    and what they gave up: the samples with `fewer_frames` and with `fewer_tiles`; `frames` (with pages) and `image_tiles` beside
    those wished; `tokens` in all, `visual_tokens` among them, and `optimum_visual_tokens`, the most that Eq. 2 of the paper could
    show in the same contexts.
    """

    read: int
    prepared: int
    rejected: int
    degraded: dict[str, int]
    too_long: dict[str, int]
    reasons: dict[str, int]
    shown: dict[str, dict[str, int]]


@dataclass
class Tally:
    """Counts that grow; `charts` has a distribution per context length and name of `CHARTS`."""

    read: int = 0
    prepared: int = 0
    rejected: int = 0
    degraded: Counter[str] = field(default_factory=Counter)
    too_long: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    shown: dict[str, Counter[str]] = field(default_factory=dict)
    charts: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)

    def add_plan(self, context_length: int, plan: VisualPlan, *, optimum_tiles: int, tokens_per_tile: int) -> None:
        """Count one sample as planned for one context length; `optimum_tiles` is the most that Eq. 2 could show there."""
        name = str(context_length)
        self.degraded[name] += bool(plan.degraded)
        self.shown.setdefault(name, Counter()).update(
            fewer_frames="frames" in plan.degraded,
            fewer_tiles="tiles" in plan.degraded,
            frames=plan.frames,
            wished_frames=plan.wished_frames,
            image_tiles=plan.image_tiles,
            wished_image_tiles=plan.wished_tiles,
            tokens=plan.length,
            visual_tokens=plan.tiles * tokens_per_tile,
            optimum_visual_tokens=optimum_tiles * tokens_per_tile,
        )
        charts = self.charts.setdefault(name, {chart: Counter() for chart in CHARTS})
        charts["length"][str(min(plan.length * LENGTH_BINS // context_length, LENGTH_BINS - 1))] += 1
        charts["frames"][str(plan.frames.bit_length())] += 1
        charts["tiles"][str(plan.tiles.bit_length())] += 1
        if "frames" in plan.degraded:
            charts["frames_kept"][str(plan.frames * SHARE_BINS // plan.wished_frames)] += 1
        if "tiles" in plan.degraded:
            charts["tiles_kept"][str(plan.image_tiles * SHARE_BINS // plan.wished_tiles)] += 1

    def add(self, other: Tally) -> None:
        """Add the counts of other samples."""
        self.read += other.read
        self.prepared += other.prepared
        self.rejected += other.rejected
        self.degraded.update(other.degraded)
        self.too_long.update(other.too_long)
        self.reasons.update(other.reasons)
        for name, counts in other.shown.items():
            self.shown.setdefault(name, Counter()).update(counts)
        for name, charts in other.charts.items():
            own = self.charts.setdefault(name, {chart: Counter() for chart in CHARTS})
            for chart, counts in charts.items():
                own[chart].update(counts)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is its inverse."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tally:
        """The tally that `to_json` gave, after JSON."""
        degraded, too_long, reasons = (Counter(values[name]) for name in ("degraded", "too_long", "reasons"))
        return cls(
            read=values["read"],
            prepared=values["prepared"],
            rejected=values["rejected"],
            degraded=degraded,
            too_long=too_long,
            reasons=reasons,
            shown={name: Counter(counts) for name, counts in values["shown"].items()},
            charts={name: {chart: Counter(bins) for chart, bins in own.items()} for name, own in values["charts"].items()},
        )

    def report(self, lengths: Sequence[int]) -> DatasetReport:
        """The counts as a report on some context lengths; reasons the most frequent first."""
        return DatasetReport(
            read=self.read,
            prepared=self.prepared,
            rejected=self.rejected,
            degraded={str(n): self.degraded[str(n)] for n in lengths},
            too_long={str(n): self.too_long[str(n)] for n in lengths},
            reasons=dict(self.reasons.most_common()),
            shown={str(n): dict(self.shown.get(str(n), {})) for n in lengths},
        )


def summary(report: DatasetReport, context_length: int | str) -> str:
    """One line: what the samples of a context length gave up."""
    name = str(context_length)
    shown = report.shown[name]
    parts = [f"context {name}: {report.degraded[name]} degraded, {report.too_long[name]} too long"]
    if report.degraded[name]:
        for what, kind in (("frames", "frames"), ("tiles", "image_tiles")):
            samples, count, wished = shown[f"fewer_{what}"], shown[kind], shown[f"wished_{kind}"]
            if samples:
                parts.append(f"{samples} with fewer {what}: {count} of {wished} {kind.replace('_', ' ')} shown")
    return "; ".join(parts)
