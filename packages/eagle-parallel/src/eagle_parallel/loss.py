"""One loss for the whole optimiser step: the weighted mean over every token of every rank and every accumulated micro-batch.

Models give SUMS of weighted token losses. Dividing each by one global normaliser, the sum of all loss weights of the step, makes
the step's gradient that of the global token mean (weights 1) or of square-root weighting (weights n^-1/2, sections 1.7 and
A.4), however tokens are dealt to ranks and steps. Engines that average gradients over ranks are undone here, not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_parallel.mesh import Mesh

WeightGroup = Literal["dp_cp", "dp"]


def global_normaliser(
    local_weight_sum: float | Tensor | Sequence[float], mesh: Mesh | None = None, *, group: WeightGroup = "dp_cp"
) -> float:
    """Sum of the loss weights of one optimiser step over ranks and accumulation, equal on every rank. Collective over `group`.

    Call it once for each optimiser step, before its first backward pass, with the weights of all its micro-batches.

    Args:
        local_weight_sum: this rank's sum of loss weights (the count of supervised tokens when weights are 1): a number, or one
            number for each micro-batch of the step.
        mesh: the mesh; None or a single process makes this plain addition.
        group: "dp_cp" when the sums are over this rank's own tokens, after sharding; "dp" when they are over whole packs,
            which all ranks of a context-parallel group share and which must not be counted more than once.

    Returns:
        The global sum, computed in float64.

    Raises:
        ValueError: a sum is negative or not finite, or group is unknown.
    """
    if group not in ("dp_cp", "dp"):
        raise ValueError(f"group must be 'dp_cp' (sums over own tokens) or 'dp' (sums over whole packs), got {group!r}.")
    total = torch.as_tensor(local_weight_sum, dtype=torch.float64).sum().item()
    if not 0 <= total < float("inf"):
        raise ValueError(f"local_weight_sum must be finite and not negative, got {total}.")
    return _sum_over(total, mesh, group)


def normalise_loss(loss_sum: Tensor, normaliser: float, *, averaged_over: int = 1, accumulation_divided_by: int = 1) -> Tensor:
    """The loss to call backward on: loss_sum / normaliser, with the engine's own averaging undone.

    Gradients summed over ranks and micro-batches must come to the gradient of the global mean. DDP, FSDP and DeepSpeed
    instead take the MEAN of gradients over all ranks, context-parallel ones included, so their factor is the world size:
    pass `averaged_over=mesh.world`. An engine that also divides the loss by the number of accumulation steps (DeepSpeed's
    `backward` by default) needs that number in `accumulation_divided_by`.

    Args:
        loss_sum: scalar, this rank's sum of weighted token losses in one micro-batch.
        normaliser: from `global_normaliser`, for the whole optimiser step.
        averaged_over: ranks over which the engine averages gradients; 1 when it sums or when there is one process.
        accumulation_divided_by: the engine's own division by accumulation steps; 1 when it does not divide.

    Returns:
        A scalar in loss_sum's dtype. Not a figure to log on more than one rank; see `global_loss`.

    Raises:
        ValueError: normaliser is not positive (no supervised token in the whole step), or a factor is less than 1.
    """
    _check_normaliser(normaliser)
    for name, factor in (("averaged_over", averaged_over), ("accumulation_divided_by", accumulation_divided_by)):
        if factor < 1:
            raise ValueError(f"{name} must be at least 1, got {factor!r}.")
    return loss_sum * (averaged_over * accumulation_divided_by / normaliser)


def global_loss(loss_sum: float | Tensor | Sequence[float], normaliser: float, mesh: Mesh | None = None) -> float:
    """The step's loss as a figure to log, equal on every rank: all its loss sums over the normaliser. Collective over all ranks.

    Args:
        loss_sum: this rank's sum of weighted token losses, or one for each micro-batch of the step.
        normaliser: from `global_normaliser`.
        mesh: the mesh; None or a single process makes this plain arithmetic.

    Raises:
        ValueError: normaliser is not positive.
    """
    _check_normaliser(normaliser)
    values = loss_sum.detach() if isinstance(loss_sum, Tensor) else torch.as_tensor(loss_sum, dtype=torch.float64)
    return _sum_over(values.to(torch.float64).sum().item(), mesh, "dp_cp") / normaliser


def _check_normaliser(normaliser: float) -> None:
    if not normaliser > 0:
        raise ValueError(
            f"normaliser is {normaliser}: no token of the whole optimiser step is supervised. Skip the step on every rank, "
            f"or look for samples whose labels are all ignored."
        )


def _sum_over(value: float, mesh: Mesh | None, group: WeightGroup) -> float:
    handle = None if mesh is None else mesh.group(group)
    if handle is None:
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(handle) == "nccl" else torch.device("cpu")
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=handle)
    return total.item()
