"""Causal attention of a pack whose tokens are spread over ranks: Ulysses inside, gathering of keys or a ring outside.

The Ulysses ranks of a ring rank first exchange tokens for heads; the ring ranks that hold the same heads then attend to each
other's keys; the way back returns tokens with all heads. Equal to one process to rounding. Not for dropout or sliding windows.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from eagle_parallel.attention.gather_kv import GatherJob, gather_kv_attention
from eagle_parallel.attention.job import Job, stages
from eagle_parallel.attention.ring import ring_attention
from eagle_parallel.attention.schedule import GatherSchedule, gather_schedule, ring_schedule
from eagle_parallel.attention.ulysses import HeadExchange, to_heads, to_tokens
from eagle_parallel.errors import NotYetSupported
from eagle_parallel.exchange import check_mesh, check_rows
from eagle_parallel.kernels.base import KernelName, choose_kernel
from eagle_parallel.kernels.truth import check_heads
from eagle_parallel.layout import HeadShare, deal_heads
from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import Plan
from eagle_parallel.planner.stages import StageCounts, stage_counts

Algorithm = Literal["auto", "gather_kv", "ring"]


def cp_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    mesh: Mesh | None = None,
    *,
    scale: float | None = None,
    algorithm: Algorithm = "auto",
    kernel: Literal["auto"] | KernelName = "auto",
    head_groups: int | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each document of the plan's pack, for this rank's queries. Differentiable in q, k and v.

    Collective over the context-parallel group, forward and backward; every rank issues the same collectives in the same order,
    also one that owns nothing. Partial dK and dV travel in the input's dtype and are summed in float32 (float64 for float64).

    Args:
        q: [local_tokens, query_heads, head_dim], this rank's tokens as the plan deals them, positions already applied.
        k: [local_tokens, kv_heads, head_dim]; query_heads is a multiple of kv_heads, otherwise any numbers.
        v: shaped like k.
        plan: the pack's plan.
        mesh: the mesh of the plan; may be left out when plan.cp is 1.
        scale: factor on q k^T; head_dim ** -0.5 when None.
        algorithm: what the ring ranks do: "gather_kv" or "ring" (the baseline); "auto" gathers.
        kernel: "truth", "flash", "cudnn", "fa" (see `available`); "auto" is flash for bfloat16 and float16 on CUDA, else truth.
        head_groups: stages of KV heads in which keys are gathered, at most the KV heads of a rank; from the sizes when None.
        window: sliding windows are not supported; None.

    Returns:
        [local_tokens, query_heads, head_dim] in q's dtype.

    Raises:
        ValueError: mesh, plan and tensors do not fit each other, or an option is unknown; raised before anything is sent.
        TypeError: dtypes differ.
        NotYetSupported: window, or a kernel that cannot run here.
    """
    rank = check_mesh(plan, mesh)
    if window is not None:
        raise NotYetSupported(f"sliding windows (window={window}) are not in this version; use full attention, window=None.")
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"algorithm {algorithm!r} is unknown; use one of {', '.join(get_args(Algorithm))}.")
    if head_groups is not None and head_groups < 1:
        raise ValueError(f"head_groups must be a positive integer or None, got {head_groups!r}.")
    check_heads(q, k, v)
    for name, tensor in (("q", q), ("k", k)):
        check_rows(name, tensor, plan, rank)
    shape = plan.model_shape
    if shape is not None and (q.shape[1], k.shape[1], q.shape[2]) != (shape.query_heads, shape.kv_heads, shape.head_dim):
        raise ValueError(
            f"q has shape {list(q.shape)} and k {list(k.shape)} but the plan's model_shape says {shape.query_heads} query heads, "
            f"{shape.kv_heads} kv heads, head_dim {shape.head_dim}."
        )
    factor = float(q.shape[-1] ** -0.5 if scale is None else scale)
    chosen = choose_kernel(kernel, q)
    shares = tuple(deal_heads(q.shape[1], k.shape[1], plan.cp_ulysses))
    group = q.shape[1] // k.shape[1]
    ring_rank, inner = divmod(rank, plan.cp_ulysses)
    heads = None
    if mesh is not None and (inner_group := mesh.group("cp_ulysses")) is not None:
        first = ring_rank * plan.cp_ulysses
        tokens = tuple(plan.local_tokens(first + other) for other in range(plan.cp_ulysses))
        heads = HeadExchange(shares, tokens, inner, inner_group)
        q, k, v = to_heads(q, k, v, heads)
    ring_group = mesh.group("cp_ring") if mesh is not None else None
    if algorithm == "ring" and ring_group is not None:
        job = Job(ring_schedule(plan, ring_rank, q.device), stages(shares[inner], group, 1), ring_group, chosen, factor)
        out = ring_attention(q, k, v, job)
    else:
        schedule = gather_schedule(plan, ring_rank, q.device)
        counts = _stage_counts(schedule, shares, q, head_groups) if ring_group is not None else StageCounts(1, 1)
        there, back = (stages(shares[inner], group, count) for count in counts)
        out = gather_kv_attention(q, k, v, GatherJob(schedule, there, ring_group, chosen, factor, back))
    return to_tokens(out, heads) if heads is not None else out


def _stage_counts(schedule: GatherSchedule, shares: tuple[HeadShare, ...], q: Tensor, asked: int | None) -> StageCounts:
    """Stages of KV heads; the same on every rank, for they depend on what all of them know."""
    most = max(1, min(share.kv_heads for share in shares))
    widest = max(share.kv_heads for share in shares)
    received = 2 * schedule.widest * widest * q.shape[2] * q.element_size()
    return StageCounts(min(most, asked), min(most, asked)) if asked else stage_counts(received, most)
