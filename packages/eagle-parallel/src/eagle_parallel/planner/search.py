"""Every mesh, layout and algorithm of a run, predicted and ranked: fastest per token first, what does not fit memory left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from eagle_parallel.planner.attention import ALGORITHMS, volume
from eagle_parallel.planner.load import LAYOUTS, RankLoad, rank_load
from eagle_parallel.planner.memory import PeakMemory, peak_memory
from eagle_parallel.planner.run import Choice, Run
from eagle_parallel.planner.step import StepTime, model_flops, step_time


@dataclass(frozen=True)
class Prediction:
    """A choice with its predicted step.

    tokens_per_second: of all GPUs. mfu: against the device's peak, recomputation not counted. imbalance: attention work of the
    busiest rank over the mean. received: bytes that context parallelism brings a rank in a layer, forward and backward.
    """

    choice: Choice
    time: StepTime
    memory: PeakMemory
    tokens_per_second: float
    mfu: float
    imbalance: float
    received: float
    fits: bool


def search(run: Run) -> list[Prediction]:
    """Predictions of every choice that fits, best first; of every choice, smallest memory first, when none fits.

    Ties go to the smaller cp and then to the smaller ring, so that the answer does not depend on rounding.
    """
    found = list(_distinct(run))
    if not found:
        raise ValueError(
            f"no mesh of {run.gpus} GPUs keeps a step of {run.context}-token packs within batch_tokens={run.batch_tokens}; "
            "raise it or use fewer GPUs."
        )
    fitting = [prediction for prediction in found if prediction.fits]
    if not fitting:
        return sorted(found, key=lambda prediction: prediction.memory.total)
    return sorted(
        fitting,
        key=lambda prediction: (-round(prediction.tokens_per_second, 3), prediction.choice.cp, prediction.choice.cp_ring),
    )


def _distinct(run: Run) -> Iterator[Prediction]:
    """Predictions of all choices, each load once: a layout that deals a pack as an earlier one does is left out."""
    loads: dict[int, list[RankLoad]] = {}
    for choice in choices(run):
        if choice.cp_ring not in loads:
            layouts = LAYOUTS if choice.cp_ring > 1 else ("contiguous",)
            every = [rank_load(run.lengths, choice.cp_ring, layout) for layout in layouts]
            loads[choice.cp_ring] = [
                load
                for place, load in enumerate(every)
                if not any(replace(load, layout=old.layout) == old for old in every[:place])
            ]
        for load in loads[choice.cp_ring]:
            if load.layout == choice.layout:
                yield predict(run, choice, load)


def choices(run: Run) -> Iterator[Choice]:
    """All choices for the run's GPUs: cp divides them, ulysses divides cp and gives every rank a query head.

    batch_tokens bounds dp, and the pack's tokens bound cp, since a rank without tokens is no help. With ring = 1 layouts and
    algorithms are the same thing, so that one stands for all.
    """
    for cp in _divisors(run.gpus):
        if cp > run.context:
            break
        if run.batch_tokens is not None and run.gpus // cp * run.context > run.batch_tokens:
            continue
        for ulysses in _divisors(cp):
            if ulysses > run.model.query_heads:
                break
            ring = cp // ulysses
            if ring == 1:
                yield Choice(run.gpus // cp, 1, ulysses, "contiguous", "gather_kv")
                continue
            for layout in LAYOUTS:
                for algorithm in ALGORITHMS:
                    yield Choice(run.gpus // cp, ring, ulysses, layout, algorithm)


def predict(run: Run, choice: Choice, load: RankLoad | None = None) -> Prediction:
    """Time, memory and rates of one choice; `load` is its ring rank's, where the caller has it already."""
    if choice.dp * choice.cp != run.gpus:
        raise ValueError(f"dp={choice.dp} times cp={choice.cp} is not gpus={run.gpus}; make them agree.")
    load = load or rank_load(run.lengths, choice.cp_ring, choice.layout)
    time, memory = step_time(run, choice, load), peak_memory(run, choice, load)
    rate = choice.dp * run.context / time.total
    mfu = model_flops(run) * choice.dp / (time.total * run.gpus * run.cluster.device.peak_flops)
    received = volume(run.model, run.context / choice.cp, load.moved_tokens, choice.cp_ulysses).total
    return Prediction(choice, time, memory, rate, mfu, load.imbalance, received, memory.total <= run.cluster.device.memory)


def explain(prediction: Prediction) -> str:
    """Why a choice takes as long as it does: its parts with figures, largest first, and what fills the memory."""
    choice, time, memory = prediction.choice, prediction.time, prediction.memory
    parts = sorted(vars(time).items(), key=lambda part: -part[1])
    spent = ", ".join(f"{name} {seconds / time.total:.0%}" for name, seconds in parts if seconds >= 0.005 * time.total)
    held = sorted(((name, size) for name, size in vars(memory).items() if name != "host"), key=lambda part: -part[1])
    gib = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in held if size >= 0.05 * 2**30)
    lines = [
        f"dp={choice.dp} cp_ring={choice.cp_ring} cp_ulysses={choice.cp_ulysses}"
        + (f", {choice.layout} with {choice.algorithm}" if choice.cp_ring > 1 else ""),
        f"step {time.total:.3g} s: {spent}.",
        f"attention of the busiest rank is {prediction.imbalance:.3f}x the mean; a rank receives "
        f"{prediction.received / 1e6:.1f} MB of activations in each layer, forward and backward.",
        f"peak {memory.total / 2**30:.1f} GiB{'' if prediction.fits else ', which does not fit'}: {gib} GiB; "
        "attention, mlp and head are not open at the same time.",
    ]
    if memory.host:
        lines.append(f"{memory.host / 2**30:.1f} GiB of layer inputs in pinned host memory.")
    return "\n".join(lines)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
