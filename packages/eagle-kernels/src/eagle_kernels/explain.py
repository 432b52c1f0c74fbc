"""Say which implementation every module of a model uses, and why: nothing is replaced or left alone silently.

Also lists the functions of the package with the implementation behind each, since a loss or an attention layer calls them
without any module. Reads only; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from eagle_kernels.apply import stacks_of
from eagle_kernels.forwards import tiling_obstacle
from eagle_kernels.implementation import describe
from eagle_kernels.instance import applied_forward, has_foreign_forward
from eagle_kernels.targets import Target, find_target

UNCHANGED = "module's own"
_SYNCHRONISES = "without loss_rows each call costs one host synchronisation on an accelerator"
_FUNCTIONS = {
    "rms_norm": "",
    "add_rms_norm": "",
    "layer_norm": "",
    "rope": "the same for rope_from_positions",
    "swiglu": "the same for swiglu_packed",
    "geglu": "the same for geglu_packed",
    "bias_gelu_tanh": "",
    "linear_cross_entropy": _SYNCHRONISES,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; `implementation` is "triton" or "torch" for this package's code, "module's own" for the module's."""

    path: str
    kind: str
    operator: str
    implementation: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`: `modules` has a row for each module an operator concerns, `functions` one for each operator.

    Iterating and len() go over `modules`; str() prints both, with the layers of a stack joined into one line.
    """

    modules: tuple[Row, ...]
    functions: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __str__(self) -> str:
        joined: dict[Row, int] = {}
        for row in self.modules:
            key = replace(row, path=re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", row.path))
            joined[key] = joined.get(key, 0) + 1
        lines = [("module", "class", "operator", "implementation", "why")]
        lines += [
            (row.path + (f" x{count}" if count > 1 else ""), row.kind, row.operator, row.implementation, row.why)
            for row, count in joined.items()
        ]
        lines += [(row.path, row.kind, row.operator, row.implementation, row.why) for row in self.functions]
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def explain(model: nn.Module) -> Explanation:
    """A table of every module of `model` that an operator of this package concerns: what it runs and why.

    "triton" or "torch" follows from the device and dtype of the module's parameters. Modules that no operator concerns (linear
    layers, embeddings) have no row.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}.")
    rotary = {id(stack.rotary): stack.obstacle for stack in stacks_of(model)}
    rows = []
    for path, module in model.named_modules():
        target = find_target(path, module)
        if target is not None:
            implementation, why = _judge(module, target, rotary.get(id(module), "there are no decoder layers beside it"))
            rows.append(Row(path or "(root)", type(module).__name__, target.operator, implementation, why))
    functions = []
    for name, note in _FUNCTIONS.items():
        implementation, why = _described(name, model)
        functions.append(Row("(function)", "function", name, implementation, f"{why}; {note}" if note else why))
    return Explanation(tuple(rows), tuple(functions))


def _judge(module: nn.Module, target: Target, rotary_obstacle: str | None) -> tuple[str, str]:
    if has_foreign_forward(module):
        return UNCHANGED, "another library has set forward on this instance; remove its hook, then apply()"
    if target.native:
        implementation, why = _described(target.operator, module)
        return implementation, f"{target.why}; {why}"
    if applied_forward(module) is None or not (target.replaceable or target.kind == "head"):
        obstacle = target.why
        if target.kind == "rotary" and target.replaceable:
            obstacle = rotary_obstacle or ""
        return UNCHANGED, obstacle or "apply() can replace it and has not been asked to"
    implementation, why = _described(target.operator, module)
    note = _note(module, target)
    return implementation, f"{why}; {note}" if note else why


def _note(module: Any, target: Target) -> str:
    """What a row says beyond the implementation, of a module that runs this package's forward."""
    forward = applied_forward(module)
    assert forward is not None
    if target.kind == "swiglu_mlp" and "tile_tokens" in forward.keywords:
        obstacle = tiling_obstacle(module)
        return f"not in tiles: {obstacle}" if obstacle else f"in tiles of {forward.keywords['tile_tokens']} tokens"
    if target.kind == "attention":
        return "cos and sin of the rotary module" if forward.args[1] is None else "cos and sin formed inside, from position ids"
    if target.kind == "rotary":
        return "passes position ids on, attention forms cos and sin from its inv_freq"
    if target.kind == "head":
        return "the training loss of its model runs inside its call; makes logits otherwise"
    if target.kind == "causal_lm":
        return f"training loss without logits (logits=None), module's own in eval mode or with logits_to_keep; {_SYNCHRONISES}"
    return ""


def _described(operator: str, module: nn.Module) -> tuple[str, str]:
    tensor = next(module.parameters(), None)
    if tensor is None:
        tensor = next(module.buffers(), torch.empty(0))
    return describe(operator, tensor.device, tensor.dtype)
