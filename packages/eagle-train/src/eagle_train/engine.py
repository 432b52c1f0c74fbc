"""The engine of a stage: backward passes and optimiser steps behind one small interface.

`LocalEngine` is plain PyTorch, in one process or in several that each hold the whole model. An engine owns gradients and
optimiser state; what is trained, in which order, on which data is the trainer's business (`eagle_train.training`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from eagle_parallel import Mesh
from torch import nn

from eagle_train.errors import RecipeError, TrainingError
from eagle_train.recipe import Stage


class Engine(Protocol):
    """What the trainer asks of an engine."""

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of a scalar loss that is already normalised over the optimiser step.

        Gradients are averaged over all ranks before the update, so a rank's loss is scaled by their number.
        """
        ...

    def step(self, lr: float) -> float:
        """Clip, update at rate `lr`, clear the gradients; returns the gradient norm before clipping."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def set_trainable(model: nn.Module, prefixes: Iterable[str], *, unused: Iterable[str] = ()) -> list[tuple[str, nn.Parameter]]:
    """Let exactly the parameters under `prefixes` be trained, without the `unused`, and return them with their names.

    `unused` are full names of parameters that no output depends on. Raises RecipeError for a prefix under which nothing
    can be trained.
    """
    prefixes, left_out = tuple(prefixes), set(unused)
    chosen, used = [], set()
    for name, parameter in model.named_parameters():
        prefix = next((prefix for prefix in prefixes if name == prefix or name.startswith(prefix + ".")), None)
        parameter.requires_grad_(prefix is not None and name not in left_out)
        if parameter.requires_grad:
            used.add(prefix)
            chosen.append((name, parameter))
    missing = [prefix for prefix in prefixes if prefix not in used]
    if missing or not chosen:
        modules = ", ".join(name for name, _ in model.named_children())
        named = ", ".join(missing) or "an empty list"
        raise RecipeError(f"trainable: there is nothing to train under {named}; the model's modules are {modules}")
    return chosen


class LocalEngine:
    """AdamW, the same on every rank of `mesh`. Weight decay applies to matrices, not to biases and norms."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage, mesh: Mesh | None = None):
        self._mesh = mesh
        self._parameters = [parameter for _, parameter in parameters]
        groups = [
            {"params": [p for p in self._parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
            {"params": [p for p in self._parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._clip = stage.clip
        self._optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.lr, betas=stage.betas)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        self._average()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip))
        if not math.isfinite(norm):
            # Stepping would spoil every weight; the last checkpoint is still good.
            raise TrainingError(f"the gradient norm is {norm}; lower the stage's lr or clip, or lengthen its warmup")
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _average(self) -> None:
        """Each gradient's mean over the ranks; every rank gets the same bits, so their weights never part."""
        group = None if self._mesh is None else self._mesh.group("dp_cp")
        if group is None or self._mesh is None:
            return
        # A parameter that one rank's share did not touch counts as zero there; one that no rank touched stays without gradient.
        touched = torch.tensor([float(p.grad is not None) for p in self._parameters], device=self._parameters[0].device)
        dist.all_reduce(touched, group=group)
        for parameter, count in zip(self._parameters, touched.tolist(), strict=True):
            if count:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= self._mesh.world

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


__all__ = ["Engine", "LocalEngine", "set_trainable"]
