"""Triton kernels of SwiGLU and GEGLU, forward and backward, on separate tensors or the two halves of a packed one.

Element-wise work at the speed of memory: each input is read once and each output written once. Contiguous tensors are walked as
one line whatever their shape; others row by row. Backward can write over its inputs and rebuild the output on the way.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import as_rows, ceil_div


@dataclass(frozen=True)
class LineConfig:
    """Launch shape of an element-wise kernel: elements and warps of one program."""

    block: int = 1024
    warps: int = 4


@triton.jit
def _activate(gate, GELU: tl.constexpr):
    """(activation, its slope) at gate in float32: SiLU, or the tanh form of GELU written with a sigmoid."""
    if GELU:
        # 2 sqrt(2 / pi) (x + 0.044715 x^3): tanh(u) = 2 sigmoid(2 u) - 1.
        inner = gate * (1.5957691216057308 + 0.07135481282620504 * gate * gate)
        sigmoid = tl.sigmoid(inner)
        slope = sigmoid + gate * sigmoid * (1.0 - sigmoid) * (1.5957691216057308 + 0.21406443847861512 * gate * gate)
    else:
        sigmoid = tl.sigmoid(gate)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    return gate * sigmoid, slope


@triton.jit
def _forward(gate_ptr, up_ptr, out_ptr, columns, blocks, gate_stride, up_stride, GELU: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside).to(tl.float32)
    activation, _ = _activate(gate, GELU)
    tl.store(out_ptr + row * columns + column, (activation * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    out_ptr,
    columns,
    blocks,
    grad_stride,
    gate_stride,
    up_stride,
    dgate_stride,
    dup_stride,
    GELU: tl.constexpr,
    REBUILD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    grad = tl.load(grad_ptr + row * grad_stride + column, mask=inside).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=inside).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=inside).to(tl.float32)
    activation, slope = _activate(gate, GELU)
    kind = dgate_ptr.dtype.element_ty
    tl.store(dgate_ptr + row * dgate_stride + column, (grad * up * slope).to(kind), mask=inside)
    tl.store(dup_ptr + row * dup_stride + column, (grad * activation).to(kind), mask=inside)
    if REBUILD:
        # May be grad's own memory: every element is read above before it is written here, by the same lane.
        tl.store(out_ptr + row * grad_stride + column, (activation * up).to(kind), mask=inside)


def forward(gate: Tensor, up: Tensor, gelu: bool, config: LineConfig | None = None, into: Tensor | None = None) -> Tensor:
    """activation(gate) * up as a new contiguous tensor, or written to `into` (contiguous; may be gate or up)."""
    config = config or LineConfig()
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) if into is None else into
    if out.numel():
        rows, columns, (gate, up) = _lines(gate, up)
        blocks = ceil_div(columns, config.block)
        strides = (gate.stride(0), up.stride(0))
        _forward[(rows * blocks,)](
            gate, up, out, columns, blocks, *strides, GELU=gelu, BLOCK=config.block, num_warps=config.warps
        )
    return out


def backward(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool, config: LineConfig | None = None) -> tuple[Tensor, Tensor]:
    """(dgate, dup) as new contiguous tensors."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _launch_backward(grad, gate, up, dgate, dup, gelu, False, config)
    return dgate, dup


def backward_packed(grad: Tensor, gate_up: Tensor, gelu: bool, config: LineConfig | None = None) -> Tensor:
    """The gradient of the packed tensor, new and contiguous."""
    packed = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    gate, up = gate_up.chunk(2, -1)
    dgate, dup = packed.chunk(2, -1)
    _launch_backward(grad, gate, up, dgate, dup, gelu, False, config)
    return packed


def backward_in_place(grad: Tensor, gate: Tensor, up: Tensor, gelu: bool, config: LineConfig | None = None) -> None:
    """Overwrite contiguous gate with dgate, up with dup and grad with the forward's output activation(gate) * up."""
    _launch_backward(grad, gate, up, gate, up, gelu, True, config)


def _launch_backward(
    grad: Tensor, gate: Tensor, up: Tensor, dgate: Tensor, dup: Tensor, gelu: bool, rebuild: bool, config: LineConfig | None
) -> None:
    if not gate.numel():
        return
    config = config or LineConfig()
    rows, columns, (grad, gate, up, dgate, dup) = _lines(grad, gate, up, dgate, dup)
    blocks = ceil_div(columns, config.block)
    strides = (grad.stride(0), gate.stride(0), up.stride(0), dgate.stride(0), dup.stride(0))
    _backward[(rows * blocks,)](
        *(grad, gate, up, dgate, dup, grad, columns, blocks, *strides),
        GELU=gelu,
        REBUILD=rebuild,
        BLOCK=config.block,
        num_warps=config.warps,
    )


def _lines(*tensors: Tensor) -> tuple[int, int, list[Tensor]]:
    """(rows, columns, tensors as [rows, columns]): one line when all are contiguous, else rows with strides."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return 1, tensors[0].numel(), [tensor.view(1, -1) for tensor in tensors]
    flat = [as_rows(tensor) for tensor in tensors]
    return flat[0].shape[0], flat[0].shape[1], flat
