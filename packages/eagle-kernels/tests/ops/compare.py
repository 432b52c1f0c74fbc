"""Outputs and gradients of a function, and their distance from the float64 truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .operators import Operator

FLOOR = 0.5
"""Root mean square below which errors are absolute: inputs are of size two, so a smaller truth is left over by cancellation.

The gradient through a normalised row of one column is zero, for one: a GPU's fused multiply-add leaves the rounding of a
product of size two there, times 1 / sqrt(EPS) = 3."""


Results = tuple[list[Tensor], list[Tensor]]


def results(
    function: Callable[..., Any], tensors: Sequence[Tensor], constants: Sequence[Tensor], seeds: Sequence[Tensor] = ()
) -> Results:
    """(outputs, gradients of `tensors`); `seeds` are the gradients of the outputs, ones where they are not given."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    found = function(*leaves, *constants)
    outputs = list(found) if isinstance(found, tuple) else [found]
    seeds = seeds or [torch.ones_like(output) for output in outputs]
    return [output.detach() for output in outputs], list(torch.autograd.grad(outputs, leaves, seeds))


def _double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]


def exact(operator: Operator, tensors: Sequence[Tensor], constants: Sequence[Tensor], seeds: Sequence[Tensor] = ()) -> Results:
    """`results` of the twin in float64 on the same values."""
    wide = [
        [tensor.double() if tensor.is_floating_point() else tensor for tensor in kind] for kind in (tensors, constants, seeds)
    ]
    return results(operator.truth, *wide)


def seeds_for(operator: Operator, tensors: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients of the outputs."""
    outputs, _ = exact(operator, tensors, constants)
    return [torch.randn_like(output).to(tensors[0].dtype) for output in outputs]


def error(value: Tensor, truth: Tensor) -> float:
    """||value - truth|| / ||truth||, NaN where value holds one."""
    assert value.shape == truth.shape
    size = max(truth.norm().item(), FLOOR * truth.numel() ** 0.5)
    return (value.double() - truth).norm().item() / size if value.numel() else 0.0


def errors(
    operator: Operator,
    function: Callable[..., Any],
    tensors: Sequence[Tensor],
    constants: Sequence[Tensor],
    seeds: Sequence[Tensor],
) -> list[float]:
    """Error of every output and gradient of `function` against the operator's truth."""
    truth = exact(operator, tensors, constants, seeds)
    found = results(function, tensors, constants, seeds)
    dtypes = [tensor.dtype for tensor in tensors]
    assert [gradient.dtype for gradient in found[1]] == dtypes
    assert {output.dtype for output in found[0]} == {dtypes[0]}
    return [error(value, expected) for kind in range(2) for value, expected in zip(found[kind], truth[kind], strict=True)]
