"""The figures that eagle-parallel must reach on two H200 joined by NVLink, as data, and the judgement of rows against them.

Promises: every target is one line here. Rows of one GPU ("_compute") reach nothing: they are no retention. Needs no torch, so
that the documentation can judge too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
OURS, CUDNN = "eagle", "eagle_cudnn"


@dataclass(frozen=True)
class Target:
    """One bar of one case: at least `bar` (or at most) for the worst row of an implementation, or relative to a rival's."""

    case: str
    bar: float
    impl: str = OURS
    at_most: bool = False
    rival: str | None = None

    @property
    def text(self) -> str:
        who = "" if self.impl == OURS else f"{self.impl.removeprefix(OURS + '_')}: "
        than = f"x {self.rival}" if self.rival else ""
        return f"{who}at {'most' if self.at_most else 'least'} {self.bar:.2f}{than}"


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; `reached` is None when its rows are missing."""

    case: str
    text: str
    measured: str
    reached: bool | None


TARGETS = (
    Target("retention_128k", 0.98),
    Target("retention_64k", 0.97),
    Target("retention_64k", 1.45, rival="ring-flash-attn-llama3"),
    Target("retention_64k", 1.02, rival="ring-flash-attn-zigzag"),
    Target("retention_64k", 1.02, rival="yunchang"),
    Target("retention_32k", 0.94),
    Target("retention_32k", 1.01, rival="deepspeed-ulysses"),
    Target("retention_8k", 0.80),
    Target("retention_video64k", 0.95),
    Target("retention_video64k", 1.25, rival="ring-flash-attn-llama3"),
    Target("retention_video64k", 1.10, rival="ring-flash-attn-zigzag"),
    Target("retention_sft32k", 0.90),
    Target("retention_sft32k", 1.25, rival="ring-flash-attn-llama3"),
    Target("retention_sft32k", 1.10, rival="ring-flash-attn-zigzag"),
    *(Target(f"retention_{size}", 0.95, CUDNN) for size in ("32k", "64k", "128k", "video64k", "sft32k")),
    Target("memory_p2", 0.52, at_most=True),
    Target("memory_p2_attention", 0.58, at_most=True),
    Target("vision_p2", 0.54, at_most=True),
)


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """A verdict for every target, in their order; of several packs of a case the worst counts."""
    return [_judged(rows, target) for target in targets]


def _judged(rows: Sequence[Row], target: Target) -> Verdict:
    worst = max if target.at_most else min
    ours = [row["value"] for row in rows if (row["case"], row["impl"]) == (target.case, target.impl)]
    theirs = [row["value"] for row in rows if (row["case"], row["impl"]) == (target.case, target.rival)]
    if not ours or (target.rival and not theirs):
        return Verdict(target.case, target.text, "-", None)
    value = worst(ours) / (worst(theirs) if target.rival else 1.0)
    # A rival whose own retention leaves less headroom than the factor asks for need only not be faster.
    bar = min(target.bar, 1.0 / worst(theirs)) if target.rival else target.bar
    return Verdict(target.case, target.text, f"{value:.3f}", value <= bar if target.at_most else value >= bar)
