"""The retention itself, R = T(1) / (2 T(2)), on two GPUs: every process of torchrun calls `measure` with the same packs.

T(1) is the bare kernel call on the whole pack, timed on every rank at once; the first rank's counts. T(2) is `cp_attention` with
autograd, forward and backward, the slower rank's median, every run after a barrier. Rivals of `rivals.py` follow on the same
inputs with the same kernel where it is installed. On CPUs it runs over gloo with emulated operators, to prove that it runs.
Not yet run on two GPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from eagle_parallel import cp_attention, gather, init_mesh, make_plan
from torch import Tensor

from parallel_bench.bare import bare_call, whole
from parallel_bench.exact import limits, truth_of, wrong
from parallel_bench.one_gpu import inputs
from parallel_bench.packs import Pack
from parallel_bench.rivals import RIVALS, NotOfferedError
from parallel_bench.shared import Record, free_memory, summarise

Call = Callable[[], list[Tensor]]


def measure(packs: Sequence[Pack], kernels: Sequence[str], device: torch.device, seconds: float, record: Record) -> None:
    """Every pack with every kernel, ours and the rivals; only rank 0 writes into the record."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_mesh(cp=dist.get_world_size())
        for pack in packs:
            for kernel in kernels:
                _measure(pack, kernel, mesh, device, seconds, record)
                free_memory(device)
    finally:
        dist.destroy_process_group()


def _measure(pack: Pack, kernel: str, mesh: Any, device: torch.device, seconds: float, record: Record) -> None:
    impl = "eagle" if kernel == "flash" else f"eagle_{kernel}"
    first = dist.get_rank() == 0
    tensors = inputs(pack, device)
    truth = truth_of(tensors, pack.lengths)
    bare = bare_call(kernel, tensors, pack.lengths)
    bare_errors = truth.errors(whole(bare()))
    plan = make_plan(pack.borders, mesh, pack.heads, "auto")
    index = plan.local_index(mesh.cp_rank).to(device)
    ours = _ours([tensor.index_select(0, index) for tensor in tensors], plan, mesh, kernel)
    errors = truth.errors([gather(part, plan, mesh) for part in ours()])
    faults = wrong(errors, bare_errors, limits(kernel, "gather_kv", mesh.cp_ring, mesh.cp_ulysses, pack.heads.kv_heads))
    if faults and first:
        record.add_failure(pack.case, impl, pack.shape(mesh.cp), "; ".join(faults))
    calls: dict[str, Call] = {"bare": bare, impl: ours}
    for name, make in RIVALS.items() if kernel == "flash" else ():
        try:
            calls[name] = make(pack, tensors)
        except NotOfferedError as reason:
            if first:
                record.add_absent(name, str(reason), pack.case)
    times = _in_turns(calls, device, seconds)
    if not first:
        return
    alone = summarise(times["bare"][0])
    for name in calls:
        if name != "bare" and not (name == impl and faults):
            ranks = [summarise(rank) for rank in times[name]]
            slowest = max(ranks, key=lambda timing: timing.median_ms)
            row: dict[str, Any] = {
                "case": pack.case,
                "impl": name,
                "shape": pack.shape(mesh.cp),
                "value": alone.median_ms / (mesh.cp * slowest.median_ms),
                "unit": "R",
                "runs": slowest.runs,
                "spread": slowest.spread,
                "ranks": f"{mesh.cp} processes",
                "kernel": kernel,
                "one_gpu_ms": alone.median_ms,
                "rank_ms": [timing.median_ms for timing in ranks],
            }
            if name == impl:
                row |= {"layout": plan.layout, "error": errors, "bare_error": bare_errors}
            record.add(row)


def _ours(local: Sequence[Tensor], plan: Any, mesh: Any, kernel: str) -> Call:
    q, k, v = (tensor.requires_grad_() for tensor in local[:3])
    options: Any = {"kernel": kernel}

    def call() -> list[Tensor]:
        out = cp_attention(q, k, v, plan, mesh, **options)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), local[3])]

    return call


def _in_turns(calls: dict[str, Call], device: torch.device, seconds: float) -> dict[str, list[list[float]]]:
    """For each call every rank's times in milliseconds, by rank; all ranks do the same number of runs."""
    begin = time.perf_counter()
    for call in calls.values():
        call()
    _wait(device)
    runs = torch.tensor([max(3, min(20, int(seconds / max(1e-9, time.perf_counter() - begin))))], device=device)
    dist.all_reduce(runs, dist.ReduceOp.MIN)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(int(runs)):
        for name, call in calls.items():
            _wait(device)
            dist.barrier()
            start = time.perf_counter()
            call()
            _wait(device)
            times[name].append((time.perf_counter() - start) * 1e3)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, times)
    return {name: [found[name] for found in everyone] for name in calls}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
