"""Turn checkpointing on for the decoder layers of a model that exists, layer by layer, and off again.

Works on transformers' `GradientCheckpointingLayer`, recognised by name, wherever it sits in a composite model: the two attributes
through which that class is told to checkpoint are set on single instances. Other models hand a `Checkpointer` to their own code.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eagle_kernels.checkpointing.checkpointer import Checkpointer, CheckpointPolicy

_ATTRIBUTES = ("gradient_checkpointing", "_gradient_checkpointing_func")


class _LayerCheckpoint:
    """A layer's checkpoint function: the checkpointer, and what the layer's attributes were before."""

    def __init__(self, checkpointer: Checkpointer, before: dict[str, Any]) -> None:
        self.checkpointer = checkpointer
        self.before = before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.checkpointer(*args, **kwargs)


def checkpoint_layers(model: nn.Module, policy: CheckpointPolicy, *, only: str | nn.Module | None = None) -> Checkpointer:
    """Checkpoint a transformers model's layers under a policy, whenever they run in training mode.

    A layer that is checkpointed already gets the new policy. The model need not be transformers' own, only its layers.

    Args:
        model: the model, or one tower of it. Changed in place.
        policy: what to offload and what to keep.
        only: a submodule, or its dotted name in `model`; layers elsewhere stay as they are.

    Returns:
        The checkpointer that all these layers share; it tells the bytes in use.

    Raises:
        TypeError: model or policy is of another type.
        ValueError: `only` is not in the model, or there is no layer to checkpoint.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"checkpoint_layers: model must be a torch.nn.Module, got {type(model).__name__}.")
    checkpointer = Checkpointer(policy)
    root = _part(model, only)
    layers = [module for module in root.modules() if _is_layer(module)]
    if not layers:
        raise ValueError(
            f"checkpoint_layers: {type(root).__name__} holds no GradientCheckpointingLayer of transformers. Call a Checkpointer "
            "in place of torch.utils.checkpoint.checkpoint in the model's own code."
        )
    for layer in layers:
        state = vars(layer)
        current = state.get("_gradient_checkpointing_func")
        own = isinstance(current, _LayerCheckpoint)
        before = current.before if own else {name: state[name] for name in _ATTRIBUTES if name in state}
        state.update(zip(_ATTRIBUTES, (True, _LayerCheckpoint(checkpointer, before)), strict=True))
    return checkpointer


def stop_checkpointing(model: nn.Module) -> nn.Module:
    """Undo `checkpoint_layers` on every layer of the model; each is checkpointed afterwards as it was before.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"stop_checkpointing: model must be a torch.nn.Module, got {type(model).__name__}.")
    for module in model.modules():
        state = vars(module)
        current = state.get("_gradient_checkpointing_func")
        if isinstance(current, _LayerCheckpoint):
            for name in _ATTRIBUTES:
                state.pop(name, None)
            state.update(current.before)
    return model


def _is_layer(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "GradientCheckpointingLayer" and cls.__module__ == "transformers.modeling_layers"
        for cls in type(module).__mro__
    )


def _part(model: nn.Module, only: str | nn.Module | None) -> nn.Module:
    modules = dict(model.named_modules())
    if only is None:
        return model
    if isinstance(only, nn.Module):
        if any(module is only for module in modules.values()):
            return only
        raise ValueError(f"checkpoint_layers: only is a {type(only).__name__} that is not part of the model.")
    if only not in modules:
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"checkpoint_layers: only={only!r} names no submodule of the model, whose children are: {children}.")
    return modules[only]
