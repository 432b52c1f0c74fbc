"""SwiGLU, silu(gate) * up, at Qwen2.5-7B's intermediate size, forward and backward.

Bytes counted: forward reads two tensors and writes one, backward reads three and writes two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_bench.peers import Operator
from kernel_bench.problem import Call, Problem, Setting, bind_backward, bind_forward

INTERMEDIATE = 18944
PIECE = 2048


def truth_of(gate: Tensor, up: Tensor, grad: Tensor | None) -> dict[str, Tensor]:
    """The forward result, or both gradients when `grad` is given: computed in float64, kept in float32."""
    parts: list[tuple[Tensor, ...]] = []
    for begin in range(0, len(gate), PIECE):
        piece = slice(begin, begin + PIECE)
        wide = tuple(tensor[piece].double().requires_grad_(grad is not None) for tensor in (gate, up))
        result = F.silu(wide[0]) * wide[1]
        found = (result,) if grad is None else torch.autograd.grad(result, wide, grad[piece].double())
        parts.append(tuple(tensor.float() for tensor in found))
    names = ("product",) if grad is None else ("dgate", "dup")
    return {name: torch.cat(pieces) for name, pieces in zip(names, zip(*parts, strict=True), strict=True)}


def problems(setting: Setting, *, backward: bool) -> Iterator[Problem]:
    """16384 rows, then 32768."""
    columns = 96 if setting.quick else INTERMEDIATE
    for rows in (16, 32) if setting.quick else (16384, 32768):
        random = setting.random()
        gate, up = random(rows, columns), random(rows, columns)
        grad = random(rows, columns) if backward else None

        def bind(operator: Operator, own: tuple[Tensor, ...], grad: Tensor | None = grad) -> Call:
            return bind_forward(operator, own) if grad is None else bind_backward(operator, own, (grad,))

        moved = (5 if backward else 3) * rows * columns * 2
        yield Problem(
            case=f"swiglu_{'backward' if backward else 'forward'}",
            shape={"rows": rows, "columns": columns},
            operator="swiglu",
            inputs=(gate, up),
            bind=bind,
            truth=truth_of(gate, up, grad),
            unit="TB/s",
            value=lambda ms, moved=moved: moved / ms / 1e9,
            extra={"floor": setting.copy_tb_s},
        )
