"""Causal attention of a pack whose tokens are spread over ranks, by gathering keys and values: exact, and plain PyTorch.

Every rank gathers K and V of the whole pack, attends with its own queries (each sees all its keys, so nothing is merged), and in
the backward pass gathers again, then sums dK and dV over ranks and keeps its own rows. What is saved for the backward pass is
local. Equal to one process to the last rounding; ring and Ulysses are not in this version and say so.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.attention_truth import Span, attention_backward, attention_forward, check_heads
from eagle_parallel.errors import NotYetSupported
from eagle_parallel.exchange import check_mesh, check_rows, gather_rows, reduce_rows
from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import Plan

Algorithm = Literal["gather_kv", "ring"]


def local_spans(plan: Plan, rank: int) -> list[Span]:
    """A rank's pieces as attention spans: its own query rows against the pack's key rows from the document's start."""
    spans, row = [], 0
    for document, start, end in plan.pieces[rank]:
        first_key = plan.cu_seqlens[document]
        spans.append(Span(row, row + end - start, first_key, first_key + end, start))
        row += end - start
    return spans


def cp_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    mesh: Mesh | None = None,
    *,
    scale: float | None = None,
    algorithm: Algorithm = "gather_kv",
) -> Tensor:
    """Causal attention within each document of the plan's pack, for this rank's queries. Differentiable in q, k and v.

    Collective over the context-parallel group, forward and backward: one gather forward; one gather and one sum backward. Partial
    dK and dV are formed and summed in float32 (float64 for float64), then rounded to the input's dtype.

    Args:
        q: [local_tokens, query_heads, head_dim], this rank's tokens as the plan deals them, positions already applied.
        k: [local_tokens, kv_heads, head_dim]; query_heads is a multiple of kv_heads.
        v: shaped like k.
        plan: the pack's plan.
        mesh: the mesh of the plan; may be left out when plan.cp is 1.
        scale: factor on q k^T; head_dim ** -0.5 when None.
        algorithm: "gather_kv"; "ring" is named for later.

    Returns:
        [local_tokens, query_heads, head_dim] in q's dtype.

    Raises:
        ValueError: mesh, plan and tensors do not fit each other; raised before anything is sent.
        TypeError: dtypes differ.
        NotYetSupported: ulysses > 1, or algorithm "ring".
    """
    rank = check_mesh(plan, mesh)
    if plan.cp_ulysses > 1:
        raise NotYetSupported(
            f"attention with ulysses={plan.cp_ulysses} is not in this version; use init_mesh(cp={plan.cp}, ulysses=1), "
            f"which gathers keys over all {plan.cp} ranks and takes any number of heads."
        )
    if algorithm != "gather_kv":
        raise NotYetSupported(f"algorithm {algorithm!r} is not in this version; use algorithm='gather_kv'.")
    check_heads(q, k, v)
    for name, tensor in (("q", q), ("k", k)):
        check_rows(name, tensor, plan, rank)
    shape = plan.model_shape
    if shape is not None and (q.shape[1], k.shape[1], q.shape[2]) != (shape.query_heads, shape.kv_heads, shape.head_dim):
        raise ValueError(
            f"q has shape {list(q.shape)} and k {list(k.shape)} but the plan's model_shape says {shape.query_heads} query heads, "
            f"{shape.kv_heads} kv heads, head_dim {shape.head_dim}."
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return cast(Tensor, _GatherKV.apply(q, k, v, plan, mesh, rank, scale))


class _GatherKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, mesh: Mesh | None, rank: int, scale: float) -> Tensor:
        full_k, full_v = _gather_pair(k, v, plan, mesh)
        out, lse = attention_forward(q, full_k, full_v, local_spans(plan, rank), scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.mesh, ctx.rank, ctx.scale = plan, mesh, rank, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        full_k, full_v = _gather_pair(k, v, ctx.plan, ctx.mesh)
        spans = local_spans(ctx.plan, ctx.rank)
        dq, dk, dv = attention_backward(grads[0], q, full_k, full_v, out, lse, spans, ctx.scale)
        dk, dv = reduce_rows(torch.cat((dk, dv), dim=1), ctx.plan, ctx.mesh).chunk(2, dim=1)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _gather_pair(k: Tensor, v: Tensor, plan: Plan, mesh: Mesh | None) -> tuple[Tensor, Tensor]:
    full_k, full_v = gather_rows(torch.cat((k, v), dim=1), plan, mesh).chunk(2, dim=1)
    return full_k, full_v
