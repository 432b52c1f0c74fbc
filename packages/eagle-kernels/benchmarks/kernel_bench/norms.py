"""RMSNorm and residual-add + RMSNorm at Qwen2.5-7B's hidden size, forward and backward (dX and dW).

Bytes counted: each input read once, each output written once; the weight and the row statistics are too small to count.
The weight is random around 1, so that a wrong gradient cannot hide behind a product with ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kernel_bench.peers import Operator
from kernel_bench.problem import Call, Problem, Setting, bind_backward, bind_forward

EPS = 1e-6
HIDDEN = 3584
PIECE = 4096


def exact_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def truth_forward(x: Tensor, residual: Tensor | None, weight: Tensor) -> dict[str, Tensor]:
    """`normed`, and `summed` where there is a residual, computed in float64 and kept in float32."""
    normed, summed = [], []
    for begin in range(0, len(x), PIECE):
        total = x[begin : begin + PIECE].double()
        if residual is not None:
            total = total + residual[begin : begin + PIECE].double()
            summed.append(total.float())
        normed.append(exact_rms_norm(total, weight.double()).float())
    return {"normed": torch.cat(normed), **({"summed": torch.cat(summed)} if summed else {})}


def truth_backward(x: Tensor, residual: Tensor | None, weight: Tensor, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """`dx`, `dresidual` where there is a residual, and `dweight`."""
    wide = weight.double().requires_grad_()
    dx, dweight = [], torch.zeros_like(wide)
    for begin in range(0, len(x), PIECE):
        total = x[begin : begin + PIECE].double()
        if residual is not None:
            total = total + residual[begin : begin + PIECE].double()
        total.requires_grad_()
        grad_total, grad_weight = torch.autograd.grad(
            exact_rms_norm(total, wide), (total, wide), grads[0][begin : begin + PIECE].double()
        )
        if residual is not None:
            grad_total = grad_total + grads[1][begin : begin + PIECE].double()
        dx.append(grad_total.float())
        dweight += grad_weight
    whole = torch.cat(dx)
    return {"dx": whole, **({"dresidual": whole} if residual is not None else {}), "dweight": dweight.float()}


def problems(setting: Setting, *, add: bool, backward: bool) -> Iterator[Problem]:
    """65536 rows, then 32768."""
    hidden = 64 if setting.quick else HIDDEN
    counted = 4 if add else 3 if backward else 2
    for rows in (64, 32) if setting.quick else (65536, 32768):
        random = setting.random()
        x, weight = random(rows, hidden), 1 + 0.1 * random(hidden)
        residual = random(rows, hidden) if add else None
        inputs = (x, weight) if residual is None else (x, residual, weight)
        grads = tuple(random(rows, hidden) for _ in range(2 if add else 1)) if backward else ()

        def bind(operator: Operator, own: tuple[Tensor, ...], grads: tuple[Tensor, ...] = grads) -> Call:
            def with_eps(*tensors: Tensor) -> Any:
                return operator(*tensors, EPS)

            return bind_backward(with_eps, own, grads) if backward else bind_forward(with_eps, own)

        moved = counted * rows * hidden * 2
        yield Problem(
            case=f"{'add_' if add else ''}rms_norm_{'backward' if backward else 'forward'}",
            shape={"rows": rows, "hidden": hidden},
            operator="add_rms_norm" if add else "rms_norm",
            inputs=inputs,
            bind=bind,
            truth=truth_backward(x, residual, weight, grads) if backward else truth_forward(x, residual, weight),
            unit="TB/s",
            value=lambda ms, moved=moved: moved / ms / 1e9,
            extra={"floor": setting.copy_tb_s},
        )
