"""Say which implementation every module of a model uses, and why: nothing is replaced or left alone silently.

Also lists the functions of the package with the implementation behind each, since a loss or an attention layer calls them
without any module. Reads only; changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from eagle_kernels.apply import has_foreign_forward, is_applied
from eagle_kernels.targets import Target, find_target

IMPLEMENTATION = "torch"
UNCHANGED = "module's own"
_WHY = "plain PyTorch twin; this version has no fused kernel"
_FUNCTIONS = {
    "rms_norm": _WHY,
    "add_rms_norm": _WHY,
    "layer_norm": _WHY,
    "rope": _WHY,
    "swiglu": f"{_WHY}; the same for swiglu_packed",
    "geglu": f"{_WHY}; the same for geglu_packed",
    "bias_gelu_tanh": _WHY,
    "linear_cross_entropy": "chunked plain PyTorch; without loss_rows each call costs one host synchronisation on an accelerator",
}


@dataclass(frozen=True)
class Row:
    """One line of the table; `implementation` is "torch" for this package's code, "module's own" for an untouched module."""

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

    Modules that no operator concerns (linear layers, embeddings, attention) have no row.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}.")
    rows = []
    for path, module in model.named_modules():
        target = find_target(path, module)
        if target is not None:
            implementation, why = _judge(module, target)
            rows.append(Row(path or "(root)", type(module).__name__, target.operator, implementation, why))
    functions = tuple(Row("(function)", "function", name, IMPLEMENTATION, why) for name, why in _FUNCTIONS.items())
    return Explanation(tuple(rows), functions)


def _judge(module: nn.Module, target: Target) -> tuple[str, str]:
    if is_applied(module):
        return IMPLEMENTATION, _WHY
    if has_foreign_forward(module):
        return UNCHANGED, "another library has set forward on this instance; remove its hook, then apply()"
    if target.native:
        return IMPLEMENTATION, f"{target.why}; {_WHY}"
    return UNCHANGED, "apply() can replace it and has not been asked to" if target.replaceable else target.why
