"""Triton kernels of bias + tanh GELU, forward and backward.

With u = sqrt(2 / pi) (z + 0.044715 z^3) and z = x + bias, gelu(z) = z (1 + tanh u) / 2 = z sigmoid(2 u), which needs no tanh.
Both kernels cut the columns into blocks, so that a width such as SigLIP's 4304 wastes few lanes. Forward: one tile a program.
Backward: the programs of a column block walk over the rows, write dx and keep their share of dbias in float32 registers;
a second kernel sums the shares in a fixed order, so dbias is deterministic.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import as_rows, ceil_div, multiprocessors
from eagle_kernels.kernels.rms_norm import sum_partials

SCALE = tl.constexpr(2 * math.sqrt(2 / math.pi))
CUBIC = tl.constexpr(0.044715)
SLOPE = tl.constexpr(3 * 0.044715)


@dataclass(frozen=True)
class TileConfig:
    """Launch shape of a tiled kernel: rows and columns of a tile, warps, loads in flight, programs on each multiprocessor."""

    rows: int
    columns: int
    warps: int
    stages: int = 1
    programs: int = 1


FORWARD = TileConfig(rows=16, columns=256, warps=4)
"""256 columns are one 16-byte load for each lane of a warp in bfloat16; 16 rows over 4 warps are four such loads a thread."""
BACKWARD = TileConfig(rows=8, columns=256, warps=4, stages=3, programs=6)
"""Two tensors and an accumulator live at once, hence half of forward's tile."""


@triton.jit
def _gate(z):
    """(sigmoid(2 u), 2 du/dz)."""
    square = z * z
    gate = tl.sigmoid(z * SCALE * (square * CUBIC + 1))
    return gate, (square * SLOPE + 1) * SCALE


@triton.jit
def _forward(x_ptr, bias_ptr, y_ptr, rows, columns, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column_blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    z = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32) + bias
    gate, _ = _gate(z)
    tl.store(y_ptr + row * columns + column, (z * gate).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    x_ptr,
    bias_ptr,
    dx_ptr,
    partial_ptr,
    rows,
    columns,
    grad_stride,
    x_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column_blocks = tl.cdiv(columns, BLOCK)
    walker = tl.program_id(0) // column_blocks
    walkers = tl.num_programs(0) // column_blocks
    first = (tl.program_id(0) % column_blocks) * BLOCK
    column = first + tl.arange(0, BLOCK)[None, :]
    bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in tl.range(walker, tl.cdiv(rows, ROWS), walkers, num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < columns)
        z = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32) + bias
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        gate, slope = _gate(z)
        # gate (1 - gate) vanishes before z * slope can overflow, so it is multiplied first.
        dx = grad * (gate + gate * (1 - gate) * slope * z)
        dbias += dx
        tl.store(dx_ptr + row * columns + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    one_column = first + tl.arange(0, BLOCK)
    tl.store(partial_ptr + walker.to(tl.int64) * columns + one_column, tl.sum(dbias, 0), mask=one_column < columns)


def forward(x: Tensor, bias: Tensor, config: TileConfig = FORWARD) -> Tensor:
    """gelu_tanh(x + bias) in x's dtype, contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        flat = as_rows(x)
        rows, columns = flat.shape
        _forward[(ceil_div(columns, config.columns) * ceil_div(rows, config.rows),)](
            flat,
            bias.contiguous(),
            y,
            rows,
            columns,
            flat.stride(0),
            ROWS=config.rows,
            BLOCK=config.columns,
            num_warps=config.warps,
        )
    return y


def backward(grad: Tensor, x: Tensor, bias: Tensor, config: TileConfig = BACKWARD) -> tuple[Tensor, Tensor]:
    """(dx in x's dtype, dbias in bias's dtype) of y = gelu_tanh(x + bias)."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, torch.zeros_like(bias)
    flat, flat_grad = as_rows(x), as_rows(grad)
    rows, columns = flat.shape
    column_blocks = ceil_div(columns, config.columns)
    walkers = min(ceil_div(rows, config.rows), max(1, config.programs * multiprocessors(x.device) // column_blocks))
    partial = torch.empty((walkers, columns), dtype=torch.float32, device=x.device)
    _backward[(column_blocks * walkers,)](
        flat_grad,
        flat,
        bias.contiguous(),
        dx,
        partial,
        rows,
        columns,
        flat_grad.stride(0),
        flat.stride(0),
        ROWS=config.rows,
        BLOCK=config.columns,
        STAGES=config.stages,
        num_warps=config.warps,
    )
    return dx, sum_partials(partial, bias.dtype)
