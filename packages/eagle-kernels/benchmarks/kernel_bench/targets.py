"""The figures that eagle-kernels must reach on one H200, as data, and the judgement of a result file against them.

Promises: every target of a case is one line here, computed from rows of one run only, at the case's last shape. A target whose
rows are missing is neither reached nor missed. Needs no torch, so that the documentation can judge too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
OURS = "eagle"


@dataclass(frozen=True)
class Rows:
    """The rows of one run, looked up by case and implementation."""

    rows: Sequence[Row]

    def last(self, case: str, impl: str = OURS) -> Row:
        """The row at the case's last shape; KeyError without one."""
        found = [row for row in self.rows if (row["case"], row["impl"]) == (case, impl)]
        if not found:
            raise KeyError(f"no row of {impl} in {case}")
        return found[-1]

    def best_peer(self, case: str) -> Row:
        """The fastest peer with exact answers at the case's last shape; KeyError without one."""
        shape = self.last(case)["shape"]
        peers = [row for row in self.rows if row["case"] == case and row["shape"] == shape and is_peer(row["impl"])]
        if not peers:
            raise KeyError(f"no peer in {case}")
        return max(peers, key=lambda row: row["value"] if row["unit"] == "TB/s" else -row["value"])


def is_peer(impl: str) -> bool:
    """True for an implementation that is not ours, in the case's plain variant."""
    return not impl.startswith(OURS) and not impl.endswith(("_positions", "_backward"))


@dataclass(frozen=True)
class Target:
    """One bar of one case: its words, and the figure reached with whether it suffices."""

    case: str
    text: str
    reached: Callable[[Rows], tuple[str, bool]]


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; `reached` is None when its rows are missing."""

    case: str
    text: str
    measured: str
    reached: bool | None


def rate(case: str, bar: float, impl: str = OURS) -> Target:
    """At least so many TB/s."""

    def reached(rows: Rows) -> tuple[str, bool]:
        value = rows.last(case, impl)["value"]
        return f"{value:.2f}", value >= bar

    return Target(case, f"{impl.removeprefix(OURS).strip('_') or 'at least'} {bar:.2f} TB/s", reached)


def rate_or_peer(case: str, bar: float, share: float) -> Target:
    """At least so many TB/s, or so much of the best peer."""

    def reached(rows: Rows) -> tuple[str, bool]:
        value = rows.last(case)["value"]
        if value >= bar:
            return f"{value:.2f}", True
        of_peer = value / rows.best_peer(case)["value"]
        return f"{value:.2f}, {of_peer:.3f}x", of_peer >= share

    return Target(case, f"at least {bar:.2f} TB/s, or {share:.2f}x the best peer", reached)


def over_floor(case: str, bar: float) -> Target:
    """At most so many times the matrix products alone."""

    def reached(rows: Rows) -> tuple[str, bool]:
        row = rows.last(case)
        return f"{row['value'] / row['floor']:.3f}x", row["value"] / row["floor"] <= bar

    return Target(case, f"at most {bar:.2f}x its matrix products alone", reached)


def over(case: str, bar: float, text: str, impl: str = OURS, of: str | None = None) -> Target:
    """Time at most so many times that of another row: `impl` of this case, or ours of the case `of`."""

    def reached(rows: Rows) -> tuple[str, bool]:
        ratio = rows.last(case)["value"] / rows.last(of or case, impl)["value"]
        return f"{ratio:.3f}x", ratio <= bar

    return Target(case, text, reached)


def faster(case: str, bar: float, impl: str) -> Target:
    """Speed at least so many times that of a peer."""

    def reached(rows: Rows) -> tuple[str, bool]:
        ratio = rows.last(case, impl)["value"] / rows.last(case)["value"]
        return f"{ratio:.3f}x", ratio >= bar

    return Target(case, f"at least {bar:.2f}x {impl}", reached)


def peak(case: str, bar: float, text: str) -> Target:
    """At most so many GiB."""

    def reached(rows: Rows) -> tuple[str, bool]:
        value = rows.last(case)["peak_gib"]
        return f"{value:.2f} GiB", value <= bar

    return Target(case, text, reached)


def no_more_memory(case: str, impl: str) -> Target:
    """A peak no higher than a peer's."""

    def reached(rows: Rows) -> tuple[str, bool]:
        mine, theirs = rows.last(case)["peak_gib"], rows.last(case, impl)["peak_gib"]
        return f"{mine:.1f} and {theirs:.1f} GiB", mine <= theirs

    return Target(case, f"no more memory than {impl}", reached)


def inputs_gone(case: str) -> Target:
    """Between forward and backward the device holds at least 95 % of the layer inputs less than plain checkpointing."""

    def reached(rows: Rows) -> tuple[str, bool]:
        ours, plain = rows.last(case), rows.last(case, "plain")
        gone = (plain["held_gib"] - ours["held_gib"]) / ours["layer_inputs_gib"]
        return f"{gone:.1%} gone", gone >= 0.95

    return Target(case, "device memory without the layer inputs", reached)


def host_ratio(case: str) -> Target:
    """Host bytes are those of the layer inputs, to two decimals."""

    def reached(rows: Rows) -> tuple[str, bool]:
        value = rows.last(case)["host_ratio"]
        return f"{value:.3f}x", value <= 1.005

    return Target(case, "host bytes 1.00x the layer inputs", reached)


TARGETS = (
    rate("rms_norm_forward", 4.0),
    rate("rms_norm_backward", 3.6),
    rate("add_rms_norm_forward", 3.9),
    rate("add_rms_norm_backward", 3.7),
    rate("rope", 3.8),
    rate("rope", 3.8, "eagle_backward"),
    rate_or_peer("swiglu_forward", 4.25, 0.98),
    rate_or_peer("swiglu_backward", 4.25, 0.98),
    over_floor("linear_ce_32768", 1.08),
    over("linear_ce_32768", 1.0, "never slower than torch.compile", "compile"),
    peak("linear_ce_32768", 3.5, "at most +3.5 GiB"),
    over_floor("linear_ce_2048", 1.12),
    over("linear_ce_32768_supervised20", 0.25, "at most 0.25x the time of all rows", of="linear_ce_32768"),
    over("linear_ce_32768_weighted", 1.01, "under 1 % more than without weights", "eagle_unweighted"),
    over("offload_32768", 1.02, "at most 2 % slower than plain checkpointing", "plain"),
    inputs_gone("offload_32768"),
    host_ratio("offload_32768"),
    faster("step_32768", 1.15, "transformers"),
    faster("step_32768", 1.0, "liger"),
    no_more_memory("step_32768", "liger"),
    faster("step_131072", 1.10, "liger"),
    peak("step_131072", 45.0, "below 45 GiB"),
)


def judge(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """A verdict for every target, in their order."""
    verdicts = []
    for target in targets:
        try:
            measured, reached = target.reached(Rows(rows))
        except KeyError:
            measured, reached = "-", None
        verdicts.append(Verdict(target.case, target.text, measured, reached))
    return verdicts
