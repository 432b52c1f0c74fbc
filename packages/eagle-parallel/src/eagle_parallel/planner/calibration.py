"""The planner's own error: every measured point that ships with the package beside what the model says of it.

Points that a constant was solved from are marked `fitted` and prove nothing; the others were not used for constants, though the
form of the model was chosen with all of them in view. What has no point here, in the first place everything over more than one
GPU but the links themselves, is extrapolation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from statistics import median
from typing import Any

from eagle_parallel.planner.attention import Algorithm, Heads, attention_time
from eagle_parallel.planner.hardware import H200, KERNELS, MIB, NVLINK, Call, Cluster, Kernel, Link
from eagle_parallel.planner.load import LayoutName, rank_load, tiled_pairs
from eagle_parallel.planner.memory import RESERVED, peak_memory
from eagle_parallel.planner.model import MODELS
from eagle_parallel.planner.run import Choice, Run
from eagle_parallel.planner.step import step_time

_HEADS, _HEAD_DIM = 28, 128
_ALONE = Choice(1, 1, 1, "contiguous", "gather_kv")


@dataclass(frozen=True)
class Comparison:
    """One measured figure and its prediction, in the same unit."""

    what: str
    measured: float
    predicted: float
    unit: str
    fitted: bool

    @property
    def error(self) -> float:
        """Relative, positive where the model says more than was measured."""
        return self.predicted / self.measured - 1


def calibration() -> dict[str, Any]:
    """`calibration.json` as it is: hardware, date, versions, method, points."""
    return json.loads(files("eagle_parallel.planner").joinpath("calibration.json").read_text(encoding="utf-8"))


def comparisons() -> list[Comparison]:
    """Every point, in the order of the file, then each link's middle point predicted from the other two."""
    points = calibration()["points"]
    return [_COMPARE[point["kind"]](point) for point in points] + [_left_out(name, link) for name, link in NVLINK.items()]


def summary() -> str:
    """Hardware, date, and the median and largest error on points that no constant was solved from, as sentences."""
    source, found = calibration(), [comparison for comparison in comparisons() if not comparison.fitted]
    told = []
    for kind in ("attention", "call", "rank", "head", "link", "vision", "step", "memory", "retention"):
        errors = [abs(comparison.error) for comparison in found if comparison.what.startswith(kind)]
        if errors:
            told.append(f"{kind} {median(errors):.1%} (worst {max(errors):.1%}, {len(errors)} points)")
    later = source["later"]
    return (
        f"Rates were measured on {source['hardware']}, {source['date']}, calls on whole packs and what one rank of two does but "
        f"the wire on one of these GPUs, {later['date']} ({later['commit'][:7]}). Median error on points that were not fitted: "
        f"{', '.join(told)}. Assumed, not measured: InfiniBand, latencies, the optimiser, more than two ranks. Nothing that "
        "spans several GPUs has been validated beyond the links between two."
    )


def _attention(point: dict[str, Any]) -> Comparison:
    kernel, queries, keys = KERNELS[point["kernel"]], point["queries"], point["keys"]
    backward = point["direction"] == "backward"
    first = keys - queries
    call = Call(tiled_pairs(first, queries), keys, queries, keys, _HEADS, _HEAD_DIM)
    seconds = kernel.seconds(call, H200, backward=backward)
    pairs = queries * first + queries * queries / 2
    operations = (10 if backward else 4) * _HEAD_DIM * _HEADS * pairs
    what = f"attention {point['kernel']} {point['direction']}, {queries} queries, {keys} keys"
    return Comparison(what, point["tflops"], operations / seconds / 1e12, "TFLOP/s", point["fitted"])


def _link(point: dict[str, Any]) -> Comparison:
    size = point["mib"] * MIB
    rate = size / NVLINK[point["collective"]].seconds(size) / 1e9
    return Comparison(f"link {point['collective']} {point['mib']} MiB", point["gbytes_per_second"], rate, "GB/s", point["fitted"])


def _left_out(name: str, link: Link) -> Comparison:
    (first, middle, last) = link.points
    guessed = replace(link, points=(first, last)).seconds(middle[0])
    what = f"link {name} {middle[0] // MIB} MiB from the other two points"
    return Comparison(what, middle[0] / middle[1] / 1e9, middle[0] / guessed / 1e9, "GB/s", False)


def _alone(tokens: int) -> Run:
    return Run(
        MODELS["qwen2.5-7b"], (tokens,), 1, kernel=KERNELS["cudnn"], zero_stage=0, optimiser=False, gradients_resident=False
    )


def _head(point: dict[str, Any]) -> Comparison:
    predicted = step_time(_alone(point["tokens"]), _ALONE).head
    return Comparison(f"head and loss, {point['tokens']} tokens", point["seconds"], predicted, "s", point["fitted"])


def _step(point: dict[str, Any]) -> Comparison:
    predicted = step_time(_alone(point["tokens"]), _ALONE).total
    return Comparison(f"step, {point['tokens']} tokens", point["seconds"], predicted, "s", point["fitted"])


def _memory(point: dict[str, Any]) -> Comparison:
    predicted = (peak_memory(_alone(point["tokens"]), _ALONE).total - RESERVED) / 2**30  # the allocator's peak, as measured
    return Comparison(f"memory of a step, {point['tokens']} tokens", point["gib"], predicted, "GiB", point["fitted"])


def _vision(point: dict[str, Any]) -> Comparison:
    predicted = point["tiles"] * (H200.tile_forward + (H200.tile_backward if point["backward"] else 0.0))
    what = f"vision {'forward and backward' if point['backward'] else 'forward'}, {point['tiles']} tiles"
    return Comparison(what, point["seconds"], predicted, "s", point["fitted"])


def _call(point: dict[str, Any]) -> Comparison:
    """The bare kernel on a whole pack, forward and backward; cuDNN takes it document by document."""
    what = f"call {point['kernel']}, {_pack(point['lengths'])}"
    return Comparison(what, point["ms"], _milliseconds(point, 1, 1, "zigzag", "gather_kv"), "ms", point["fitted"])


def _rank(point: dict[str, Any]) -> Comparison:
    """What the busier of two ranks does in forward and backward, everything but the wire."""
    mesh = (point["cp_ring"], point["cp_ulysses"], point["layout"], point["algorithm"])
    what = f"rank {point['kernel']}, {_pack(point['lengths'])}, ring {mesh[0]} ulysses {mesh[1]} {mesh[2]} {mesh[3]}"
    return Comparison(what, point["ms"], _milliseconds(point, *mesh), "ms", point["fitted"])


def _pack(lengths: Sequence[int]) -> str:
    return f"{sum(lengths)} tokens in {len(lengths)} documents up to {max(lengths)}"


def _milliseconds(point: dict[str, Any], ring: int, ulysses: int, layout: LayoutName, algorithm: Algorithm) -> float:
    lengths = point["lengths"]
    found = attention_time(
        MODELS["qwen2.5-7b"],
        rank_load(lengths, ring, layout),
        sum(lengths),
        ring,
        ulysses,
        Cluster(),
        kernel=KERNELS[point["kernel"]],
        algorithm=algorithm,
        documents=len(lengths),
    )
    return (found.total - found.exposed_ring - found.exposed_ulysses) * 1e3


def _retention(point: dict[str, Any]) -> Comparison:
    """T(1 GPU) / (P T(P GPUs)) of one layer's attention, forward and backward, in the mesh that the point names."""
    ring, ulysses = point["cp_ring"], point["cp_ulysses"]
    predicted = retention(
        point["lengths"], ring, ulysses, point["layout"], point["algorithm"], KERNELS[point["kernel"]], MODELS["qwen2.5-7b"]
    )
    what = f"retention {point['kernel']}, {sum(point['lengths'])} tokens in {len(point['lengths'])} documents"
    what += f", ring {ring} ulysses {ulysses} {point['layout']} {point['algorithm']}"
    return Comparison(what, point["retention"], predicted, "R", point["fitted"])


def retention(
    lengths: Sequence[int],
    ring: int,
    ulysses: int,
    layout: LayoutName,
    algorithm: Algorithm,
    kernel: Kernel,
    shape: Heads,
    cluster: Cluster | None = None,
) -> float:
    """Predicted T(1 GPU) / (P T(P GPUs)) of one layer's attention, forward and backward; 1 is ideal, P = ring * ulysses."""
    times = [
        attention_time(
            shape,
            rank_load(lengths, over, layout),
            sum(lengths),
            over,
            heads_over,
            cluster or Cluster(),
            kernel=kernel,
            algorithm=algorithm,
            documents=len(lengths),
        ).total
        for over, heads_over in ((1, 1), (ring, ulysses))
    ]
    return times[0] / (ring * ulysses * times[1])


_COMPARE = {
    "call": _call,
    "rank": _rank,
    "retention": _retention,
    "vision": _vision,
    "attention": _attention,
    "link": _link,
    "head": _head,
    "step": _step,
    "memory": _memory,
}
