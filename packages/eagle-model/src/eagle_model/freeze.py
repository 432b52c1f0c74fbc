"""Which parameters train: chosen by name pattern, with an error for a pattern that means nothing.

It promises that every pattern matched something and that unused parameters never train. It makes no optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def train_only(model: Any, patterns: Iterable[str]) -> list[str]:
    """Train the parameters whose name a pattern matches, freeze the rest; returns the names that train, in model order.

    A pattern is a shell pattern over whole parameter names (`*` also crosses dots), or the name of a module, which means all
    of it: `mlp1`, `vision_model.vision_model.encoder.layers.2?`, `*.self_attn.q_proj.*`. Parameters that no output depends on
    (`unused_parameter_names`) stay frozen, whatever matches them.

    Raises:
        ValueError: a pattern that matches no parameter, naming it and the top-level modules.
    """
    chosen = _chosen(model, patterns)
    if hasattr(model, "unused_parameter_names"):
        chosen -= set(model.unused_parameter_names())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name, _ in model.named_parameters() if name in chosen]


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Freeze the parameters whose name a pattern matches and leave the others as they are; returns the frozen names.

    Patterns and errors as in `train_only`.
    """
    chosen = _chosen(model, patterns)
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    return [name for name, _ in model.named_parameters() if name in chosen]


def _chosen(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    chosen: set[str] = set()
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not matched:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"the pattern {pattern!r} matches no parameter; the model's modules are {parts}")
        chosen |= matched
    return chosen
