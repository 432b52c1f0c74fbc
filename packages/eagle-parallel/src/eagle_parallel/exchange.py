"""Move token rows between the ranks of a context-parallel group as a plan says: gather all, or sum and keep one's own.

Ranks may own different numbers of tokens, so rows travel in buffers of the largest share; the padding never reaches a model. The
two functions are each other's transpose. Collective: every rank of the group calls them in the same order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_parallel.kernels.segments import to_device
from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import Plan


def check_mesh(plan: Plan, mesh: Mesh | None) -> int:
    """This process's context-parallel rank; ValueError where the mesh and the plan do not belong together."""
    if mesh is None:
        if plan.cp > 1:
            raise ValueError(f"this plan has {plan.cp} context-parallel ranks; pass the mesh it was made for (mesh=...).")
        return 0
    if (mesh.cp_ring, mesh.cp_ulysses) != (plan.cp_ring, plan.cp_ulysses):
        raise ValueError(
            f"the plan was made for cp_ring={plan.cp_ring}, cp_ulysses={plan.cp_ulysses} but the mesh has "
            f"cp_ring={mesh.cp_ring}, cp_ulysses={mesh.cp_ulysses}; call make_plan(cu_seqlens, mesh) with this mesh."
        )
    return mesh.cp_rank


def check_rows(name: str, tensor: Tensor, plan: Plan, rank: int, dim: int = 0) -> None:
    """ValueError unless `tensor` holds exactly the rows that `rank` owns, along `dim`."""
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"{name} has shape {list(tensor.shape)}, which has no dimension {dim}.")
    if tensor.shape[dim] != plan.local_tokens(rank):
        raise ValueError(
            f"{name} has {tensor.shape[dim]} tokens along dimension {dim} of {list(tensor.shape)} but rank {rank} owns "
            f"{plan.local_tokens(rank)} of the plan's {plan.tokens}; cut it with shard_batch or with plan.local_index(rank)."
        )


def gather_rows(local: Tensor, plan: Plan, mesh: Mesh | None) -> Tensor:
    """[local_tokens, ...] of every rank to [tokens, ...] in pack order on every rank. Not differentiable; see `gather`."""
    if plan.cp == 1 or mesh is None:
        return local
    room = _room(plan)
    sent = local.new_zeros((room, *local.shape[1:]))
    sent[: local.shape[0]] = local
    received = local.new_empty((plan.cp, *sent.shape))
    dist.all_gather(list(received.unbind(0)), sent, group=mesh.group("cp"))
    return received.flatten(0, 1).index_select(0, _places(plan, local.device))


def reduce_rows(full: Tensor, plan: Plan, mesh: Mesh | None) -> Tensor:
    """[tokens, ...] in pack order of every rank to [local_tokens, ...]: the sum over ranks of the rows that this rank owns."""
    if plan.cp == 1 or mesh is None:
        return full
    room = _room(plan)
    sent = full.new_zeros((plan.cp * room, *full.shape[1:]))
    sent[_places(plan, full.device)] = full
    received = torch.empty_like(sent)
    # An exchange and a local sum in rank order, not a reduce-scatter: two runs give the same bits.
    dist.all_to_all_single(received, sent, group=mesh.group("cp"))
    return received.unflatten(0, (plan.cp, room))[:, : plan.local_tokens(mesh.cp_rank)].sum(0)


def gather(tensor: Tensor, plan: Plan, mesh: Mesh | None = None, *, dim: int = 0) -> Tensor:
    """Every rank's tokens in pack order on every rank: the inverse of `shard_batch` for one tensor.

    Differentiable: the backward pass sums over ranks the gradients of the rows that a rank owns (the transpose). If every rank
    computes the same loss from the result, each row's gradient therefore counts cp times; see `normalise_loss`.

    Args:
        tensor: the local rows, `plan.local_tokens(mesh.cp_rank)` along `dim`; any dtype.
        plan: the plan by which it was sharded.
        mesh: the mesh of that plan; may be left out when plan.cp is 1.
        dim: the token dimension.

    Returns:
        The same shape with `plan.tokens` along `dim`.

    Raises:
        ValueError: the mesh is not the plan's, or the row count is not what this rank owns.
    """
    check_rows("tensor", tensor, plan, check_mesh(plan, mesh), dim)
    if plan.cp == 1:
        return tensor
    return cast(Tensor, _Gather.apply(tensor.movedim(dim, 0), plan, mesh)).movedim(0, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, plan: Plan, mesh: Mesh | None) -> Tensor:
        ctx.plan, ctx.mesh = plan, mesh
        return gather_rows(local, plan, mesh)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return reduce_rows(grads[0].contiguous(), ctx.plan, ctx.mesh), None, None


def _room(plan: Plan) -> int:
    return max(plan.local_tokens(rank) for rank in range(plan.cp))


def _places(plan: Plan, device: torch.device) -> Tensor:
    """Row of the wire buffer [cp * room] in which each token of the pack travels: int64 [tokens], kept with the plan."""

    def build() -> Tensor:
        places, room = torch.empty(plan.tokens, dtype=torch.int64), _room(plan)
        for rank in range(plan.cp):
            index = plan.local_index(rank)
            places[index] = torch.arange(index.numel()) + rank * room
        return to_device(places, device)

    return plan.derived(("places", str(device)), build)
