"""Retention as far as one GPU can tell it: each rank's own work, measured one rank after the other, against the bare call.

R_compute = T(1) / (P max_r T_r), where T_r is everything that rank r does in one forward and backward pass (kernels, packing,
sums) except the wire: received rows are copied from a log in the GPU's own memory. It bounds the retention from above. What would
travel is counted, and the seconds it takes are predicted from NVLink rates measured before, so the retentions that a row predicts
are predictions and are named so. Not a measurement of two GPUs; `pair.py` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from eagle_parallel import Plan, make_plan
from eagle_parallel.planner.attention import attention_time
from eagle_parallel.planner.hardware import KERNELS, NVLINK, Cluster
from eagle_parallel.planner.load import rank_load
from torch import Tensor

from parallel_bench.bare import bare_call, whole
from parallel_bench.exact import Truth, limits, truth_of, wrong
from parallel_bench.packs import Pack
from parallel_bench.shared import GIB, free_memory
from parallel_bench.thread_ranks import AXES, HandDriven, alone, attention_of_ranks, hand_driven, shares
from parallel_bench.turns import in_turns
from parallel_bench.wire import received_bytes

WHERE = "one GPU, compute only"
FITTED_TOKENS = (8192, 32768)  # one document of these lengths calibrated the planner's kernels


@dataclass(frozen=True)
class Way:
    """One way to spread a pack over ranks, and the name of its row."""

    impl: str
    kernel: str
    layout: str = "auto"
    head_groups: int | None = None
    cp_ring: int = 2
    cp_ulysses: int = 1
    algorithm: str = "gather_kv"

    @property
    def ranks(self) -> int:
        return self.cp_ring * self.cp_ulysses

    @property
    def options(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm, "kernel": self.kernel, "head_groups": self.head_groups}


def ways(case: str, kernel: str) -> list[Way]:
    """What is measured of a case with one kernel: our defaults first, then the settings they were chosen from."""
    impl = "eagle" if kernel == "flash" else f"eagle_{kernel}"
    found = [Way(impl, kernel)]
    if kernel == "cudnn":
        return found
    if case in ("retention_sft32k", "retention_video64k"):
        found += [Way(f"{impl}_{layout}", kernel, layout) for layout in ("zigzag", "balanced")]
    if case == "retention_64k":
        found += [Way(f"{impl}_groups{groups}", kernel, head_groups=groups) for groups in (1, 4)]
        found.append(Way(f"{impl}_ring", kernel, algorithm="ring"))
        found.append(Way(f"{impl}_ulysses", kernel, cp_ring=1, cp_ulysses=2))
    return found


def inputs(pack: Pack, device: torch.device) -> list[Tensor]:
    """q, k, v and the gradient of out: normal, bfloat16, [tokens, heads, head_dim], the same for the same pack."""
    generator = torch.Generator(device).manual_seed(pack.tokens + (pack.seed or 0))
    heads = (pack.heads.query_heads, pack.heads.kv_heads, pack.heads.kv_heads, pack.heads.query_heads)
    return [
        torch.randn(pack.tokens, count, pack.heads.head_dim, generator=generator, device=device, dtype=torch.bfloat16)
        for count in heads
    ]


def one_round(rank: HandDriven, plan: Plan, rows: Sequence[Tensor], options: dict[str, Any]) -> None:
    """One rank's forward and backward pass."""
    q, k, v, grad_out = rows
    rank.forward(q, k, v, plan, **options)
    rank.backward(grad_out)


class WrongAnswerError(Exception):
    """An answer lies further from float64 than is allowed; it is not timed."""


def retention_rows(
    pack: Pack, kernel: str, device: torch.device, seconds: float, truths: dict[Pack, Truth]
) -> Iterator[dict[str, Any] | WrongAnswerError]:
    """The rows of one pack with one kernel; instead of a row the error of an answer that is wrong.

    Args:
        pack: documents and heads.
        kernel: "flash" or "cudnn".
        device: where; on a CPU under `emulated_kernels`.
        seconds: about how long the runs of one row may take.
        truths: keeps the truth of the last pack, for the next kernel.
    """
    wanted = ways(pack.case, kernel)
    tensors = inputs(pack, device)
    if pack not in truths:
        truths.clear()
        truths[pack] = truth_of(tensors, pack.lengths)
    truth = truths[pack]
    bare = bare_call(kernel, tensors, pack.lengths)
    bare_errors = truth.errors(whole(bare()))
    with hand_driven():
        for way in wanted:
            plan = make_plan(pack.borders, (way.cp_ring, way.cp_ulysses), pack.heads, way.layout)  # pyright: ignore[reportArgumentType]
            answer, logs = attention_of_ranks(tensors, plan, log=True, **way.options)
            errors = truth.errors(answer)
            del answer
            allowed = limits(kernel, way.algorithm, way.cp_ring, way.cp_ulysses, pack.heads.kv_heads)
            faults = wrong(errors, bare_errors, allowed)
            if faults:
                yield WrongAnswerError(f"{way.impl}: {'; '.join(faults)}")
                if device.type == "cuda" and max(errors.values()) > 0.05:
                    continue  # not a rounding: nothing to time
            rows = shares(tensors, plan)
            singles = [alone(way.cp_ring, way.cp_ulysses, rank, logs[rank]) for rank in range(plan.cp)]
            calls = {"bare": bare} | {
                f"rank {rank}": partial(one_round, single, plan, rows[rank], way.options) for rank, single in enumerate(singles)
            }
            times = in_turns(calls, device, seconds=seconds)
            ranks = [times[f"rank {rank}"] for rank in range(plan.cp)]
            slowest = max(ranks, key=lambda timing: timing.median_ms)
            alone_ms = times["bare"].median_ms
            yield {
                "case": f"{pack.case}_compute",
                "impl": way.impl,
                "shape": pack.shape(plan.cp),
                "value": alone_ms / (plan.cp * slowest.median_ms),
                "unit": "R",
                "runs": slowest.runs,
                "spread": slowest.spread,
                "ranks": WHERE,
                "kernel": kernel,
                "layout": plan.layout,
                "cp_ring": way.cp_ring,
                "cp_ulysses": way.cp_ulysses,
                "algorithm": way.algorithm,
                "one_gpu_ms": alone_ms,
                "one_gpu_spread": times["bare"].spread,
                "rank_ms": [timing.median_ms for timing in ranks],
                "error": errors,
                "bare_error": bare_errors,
                "within_limits": not faults,
                **predicted(logs, way, alone_ms, slowest.median_ms),
                "planner": planned(pack, way, plan, alone_ms, slowest.median_ms),
            }
            del rows, singles, calls, logs
            free_memory(device)


def predicted(logs: Sequence[dict[str, list[Tensor]]], way: Way, alone_ms: float, rank_ms: float) -> dict[str, Any]:
    """What would travel, how long, and the retention that follows, as predictions.

    Without overlap every exchange is exposed. With overlap, of gathered keys only the first exchange of the forward pass and the
    first and last of the backward pass are: a rank waits for its first keys and for its last gradients.
    """
    sizes = [[size for axis in AXES for size in received_bytes(log[axis])] for log in logs]
    busiest = max(sizes, key=sum)
    times = [NVLINK["all_to_all"].seconds(size) * 1e3 for size in busiest]
    found: dict[str, Any] = {
        "wire_bytes": sum(busiest),
        "wire_ms_predicted": sum(times),
        "wire_rate": "all-to-all of two H200 on NV18 NVLink, 160/260/332 GB/s at 16/128/1024 MiB, measured 2026-11-22",
        "prediction_without_overlap": alone_ms / (way.ranks * (rank_ms + sum(times))),
    }
    if way.algorithm == "gather_kv" and way.cp_ulysses == 1:
        # One stage: a gather, then gradients return. More: backward gathers again, and a third is the forward pass.
        exposed = sum(times[place] for place in {0, len(times) // 3, len(times) - 1}) if times else 0.0
        found["prediction_with_overlap"] = alone_ms / (way.ranks * (rank_ms + exposed))
    return found


def planned(pack: Pack, way: Way, plan: Plan, alone_ms: float, rank_ms: float) -> dict[str, Any]:
    """The planner's times beside the measured ones; `fitted` says that the point calibrated it."""

    def milliseconds(ring: int, ulysses: int) -> float:
        layout: Any = plan.layout if ring > 1 else "zigzag"
        found = attention_time(
            pack.heads,
            rank_load(pack.lengths, ring, layout),
            pack.tokens,
            ring,
            ulysses,
            Cluster(),
            kernel=KERNELS[way.kernel],
            algorithm=way.algorithm,  # pyright: ignore[reportArgumentType]
            documents=len(pack.lengths),
        )
        return (found.total - found.exposed_ring - found.exposed_ulysses) * 1e3

    one, many = milliseconds(1, 1), milliseconds(way.cp_ring, way.cp_ulysses)
    return {
        "one_gpu_ms": one,
        "one_gpu_error": one / alone_ms - 1,
        "one_gpu_fitted": len(pack.lengths) == 1 and pack.tokens in FITTED_TOKENS,
        "rank_ms": many,
        "rank_error": many / rank_ms - 1,
        "rank_fitted": pack.case == "retention_sft32k" and pack.seed == 0 and way.kernel == "flash",
    }


def memory_rows(pack: Pack, kernel: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """Peak memory of attention alone, forward and backward, of one rank of two over that of the bare call.

    Counted are the tensors of the attention itself: q, k, v, the gradient of out, all results and everything between. The rows
    that the other rank sends lie in a log that is there before counting starts. On a CPU nothing is counted.
    """
    impl = "eagle" if kernel == "flash" else f"eagle_{kernel}"
    with hand_driven():
        for groups in (None, 1, 4):
            plan = make_plan(pack.borders, 2, pack.heads)
            options = {"algorithm": "gather_kv", "kernel": kernel, "head_groups": groups}
            tensors = inputs(pack, device)
            answer, logs = attention_of_ranks(tensors, plan, log=True, **options)
            del tensors, answer
            bare_gib, bare_inputs = _peak(partial(_bare_weighed, pack, kernel, device), device)
            found = []
            for rank in range(2):
                # Through the host: what the other rank owns is no part of this rank's memory.
                host = [tensor.cpu() for tensor in shares(inputs(pack, device), plan)[rank]]

                single = alone(2, 1, rank, logs[rank])
                found.append(_peak(partial(_weighed, single, plan, host, options, device), device))
            top = max(found)
            yield {
                "case": "memory_p2_attention",
                "impl": impl if groups is None else f"{impl}_groups{groups}",
                "shape": pack.shape(2),
                "value": top[0] / bare_gib if bare_gib else 0.0,
                "unit": "ratio",
                "runs": 1,
                "spread": 0.0,
                "ranks": "one GPU, one rank alone, the other's rows from a log",
                "kernel": kernel,
                "rank_gib": [gib for gib, _ in found],
                "bare_gib": bare_gib,
                "beyond_inputs": max(gib - given for gib, given in found) / (bare_gib - bare_inputs or 1.0),
            }
            del logs


def _weighed(
    rank: HandDriven, plan: Plan, host: Sequence[Tensor], options: dict[str, Any], device: torch.device
) -> Callable[[], list[Tensor]]:
    """A rank's rows brought to the device, and the call that runs on them and keeps its results."""
    q, k, v, grad_out = (tensor.to(device) for tensor in host)

    def call() -> list[Tensor]:
        out = rank.forward(q, k, v, plan, **options)
        return [out, *rank.backward(grad_out)]

    return call


def _bare_weighed(pack: Pack, kernel: str, device: torch.device) -> Callable[[], list[Tensor]]:
    return bare_call(kernel, inputs(pack, device), pack.lengths)


def _peak(make: Callable[[], Callable[[], object]], device: torch.device) -> tuple[float, float]:
    """GiB at the peak of making inputs and running the call on them, and GiB of the inputs."""
    free_memory(device)
    if device.type != "cuda":
        make()()
        return 0.0, 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call = make()
    given = torch.cuda.memory_allocated(device) - before
    torch.cuda.reset_peak_memory_stats(device)
    kept = call()
    torch.cuda.synchronize(device)
    top = torch.cuda.max_memory_allocated(device) - before
    del kept, call
    return top / GIB, given / GIB
