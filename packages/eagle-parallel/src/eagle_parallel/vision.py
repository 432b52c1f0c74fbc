"""Vision over ranks: each rank encodes its own tiles or frames, and each feature row travels once, to the owner of its token.

The exchange is an all-to-all whose backward pass is the transposed one. A row has exactly one owner, so nothing is sent twice and
no gradient is summed on the way: the tower's gradients are those of one process, split over ranks by unit. Not for towers that
attend across units. A rank without units encodes one unit of zeros whose rows go nowhere, so that all ranks run the same modules
and engines that gather parameters (FSDP, ZeRO-3) or reduce gradients wait for nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import Plan
from eagle_parallel.vision_plan import VisionPlan


def local_units(units: Tensor, vision_plan: VisionPlan, rank: int) -> Tensor:
    """The pixels that a rank encodes, cut from those of the whole pack; one unit of zeros where it owns none.

    Also a pack without any picture gives one unit of zeros: the tower has to run on every rank, or on none.

    Args:
        units: [units, ...] of the whole pack in pack order, possibly [0, ...]; any dtype.
        vision_plan: the pack's vision plan.
        rank: the context-parallel rank, `mesh.cp_rank`.

    Returns:
        [max(own units, 1), ...], for the tower; its features go to `scatter_vision` as they are.

    Raises:
        ValueError: the number of units is not the plan's.
    """
    if units.shape[0] != vision_plan.units:
        raise ValueError(
            f"units has {units.shape[0]} entries but the vision plan has {vision_plan.units}; pass the whole pack's."
        )
    own = vision_plan.own_units(rank)
    return units[list(own)] if own else dummy_unit(units)


def dummy_unit(units: Tensor) -> Tensor:
    """One unit of zeros shaped like those of `units` [any, ...]: [1, ...], for a loader that cuts pixels itself."""
    return units.new_zeros((1, *units.shape[1:]))


def scatter_vision(embeds: Tensor, features: Tensor, vision_plan: VisionPlan, plan: Plan, mesh: Mesh | None = None) -> Tensor:
    """This rank's token embeddings with the visual features of its placeholder tokens in place. Differentiable in both.

    Collective over the context-parallel group, forward and backward, on every rank and for every pack, also one without
    pictures: one all-to-all each, of exactly the rows that another rank's tokens need, in the dtype of `embeds`.

    Args:
        embeds: [local_tokens, hidden] or [1, local_tokens, hidden], this rank's tokens as `plan` deals them.
        features: [own units, tokens per unit, hidden] or [own rows, hidden], this rank's units in pack order; of a rank without
            units the features of its dummy, none of whose rows is used and whose gradient is exactly zero.
        vision_plan: from `make_vision_plan`, for the same pack and mesh.
        plan: the pack's plan.
        mesh: the mesh of the plan; may be left out when plan.cp is 1.

    Returns:
        A tensor like `embeds`.

    Raises:
        ValueError: plans, mesh and tensors do not fit each other; raised before anything is sent.
    """
    rank = _check_plans(vision_plan, plan, mesh)
    rows = features.reshape(-1, features.shape[-1]).to(device=embeds.device, dtype=embeds.dtype)
    own = vision_plan.own_tokens(rank)
    if own and rows.shape[0] != own:
        raise ValueError(
            f"features has {rows.shape[0]} rows ({list(features.shape)}) but rank {rank} encodes {own}; pass the features of its "
            f"own units only, in pack order."
        )
    if embeds.dim() not in (2, 3) or embeds.shape[-2] != plan.local_tokens(rank) or (embeds.dim() == 3 and embeds.shape[0] != 1):
        raise ValueError(
            f"embeds has shape {list(embeds.shape)}, expected [{plan.local_tokens(rank)}, hidden], with or without a leading 1: "
            f"the tokens that rank {rank} owns."
        )
    if rows.shape[-1] != embeds.shape[-1]:
        raise ValueError(
            f"features has {rows.shape[-1]} channels but embeds has {embeds.shape[-1]}; the connector joins the two."
        )
    route = make_route(vision_plan, plan, rank)
    received = cast(Tensor, _Exchange.apply(rows, route, mesh))
    return embeds.reshape(-1, embeds.shape[-1]).index_copy(0, route.local_rows.to(embeds.device), received).view_as(embeds)


@dataclass(frozen=True)
class Route:
    """One rank's part in the exchange of a pack.

    `sent_rows` int64 [sent]: which of its feature rows travel, by destination; `sent` and `received`: rows to and from every
    rank; `local_rows` int64 [received]: the local token that each arriving row replaces, by source.
    """

    sent_rows: Tensor
    sent: tuple[int, ...]
    received: tuple[int, ...]
    local_rows: Tensor


def make_route(vision_plan: VisionPlan, plan: Plan, rank: int) -> Route:
    """Which feature rows a rank sends where, and where those that it receives belong. Host integers, once per pack.

    Rows between two ranks travel in pack order, so both sides agree without a word.
    """
    positions, encoders = vision_plan.positions(), vision_plan.encoders()
    owner = torch.zeros(plan.tokens, dtype=torch.int64)
    for other in range(plan.cp):
        owner[plan.local_index(other)] = other
    place = torch.zeros(plan.tokens, dtype=torch.int64)
    place[plan.local_index(rank)] = torch.arange(plan.local_tokens(rank))

    readers = owner[positions]
    destinations = readers[encoders == rank]
    mine = readers == rank
    sources = encoders[mine]
    return Route(
        sent_rows=destinations.argsort(stable=True),
        sent=tuple(destinations.bincount(minlength=plan.cp).tolist()),
        received=tuple(sources.bincount(minlength=plan.cp).tolist()),
        local_rows=place[positions[mine]][sources.argsort(stable=True)],
    )


class _Exchange(torch.autograd.Function):
    """Own feature rows to arriving rows. Backward: each row's gradient back to where it was computed, zero for unused rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, route: Route, mesh: Mesh | None) -> Tensor:
        ctx.route, ctx.mesh, ctx.shape = route, mesh, rows.shape
        return _all_to_all(rows[route.sent_rows.to(rows.device)], route.sent, route.received, mesh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        returned = _all_to_all(grads[0].contiguous(), ctx.route.received, ctx.route.sent, ctx.mesh)
        grad = returned.new_zeros(ctx.shape)
        grad[ctx.route.sent_rows.to(grad.device)] = returned
        return grad, None, None


def _all_to_all(rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...], mesh: Mesh | None) -> Tensor:
    if mesh is None or mesh.cp == 1:
        return rows
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows, list(received), list(sent), group=mesh.group("cp"))
    return arrived


def _check_plans(vision_plan: VisionPlan, plan: Plan, mesh: Mesh | None) -> int:
    """This process's context-parallel rank; ValueError where plans and mesh do not belong together."""
    if mesh is None and plan.cp > 1:
        raise ValueError(f"this plan has {plan.cp} context-parallel ranks; pass the mesh it was made for (mesh=...).")
    if vision_plan.cp != plan.cp or (mesh is not None and mesh.cp != plan.cp):
        raise ValueError(
            f"the plan is for {plan.cp} context-parallel ranks, the vision plan for {vision_plan.cp}, the mesh for "
            f"{1 if mesh is None else mesh.cp}; make both plans with this mesh."
        )
    if vision_plan.runs and vision_plan.runs[-1][1] > plan.tokens:
        raise ValueError(
            f"the vision plan fills token {vision_plan.runs[-1][1] - 1} but the plan's pack has {plan.tokens} tokens; "
            f"make both from the same pack."
        )
    return 0 if mesh is None else mesh.cp_rank
