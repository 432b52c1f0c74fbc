"""Triton kernels of RMSNorm and residual-add + RMSNorm, forward and backward.

A fixed number of programs walk over tiles of whole rows with the next loads in flight; each tensor is read and written once.
Backward's programs keep their share of dW in float32 registers and write one partial row each; a second kernel sums the partial
rows in a fixed order, so dW is deterministic.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import as_rows, ceil_div, multiprocessors, power_of_2

SHARED_MEMORY = 200 * 1024
"""Bytes of shared memory of a multiprocessor that loads in flight may fill: Hopper's 228 KiB with room for reductions."""


@dataclass(frozen=True)
class RowConfig:
    """Launch shape of a row-wise kernel: rows held at a time, warps, loads in flight, programs on each multiprocessor.

    `programs` 0 stands for one program a tile.
    """

    rows: int
    warps: int
    stages: int = 3
    programs: int = 2

    @staticmethod
    def single(block: int) -> RowConfig:
        """A program for every tile, which nothing has to be carried between: the scheduler keeps more loads in flight."""
        return RowConfig(max(1, 4096 // block), warps=min(32, max(4, block // 1024)), stages=1, programs=0)

    @staticmethod
    def of(block: int, row_bytes: int) -> RowConfig:
        """Enough lanes to fill 4 warps; as many loads in flight as shared memory holds.

        Args:
            block: lanes of a row, a power of two.
            row_bytes: bytes that one row of all tensors read in the loop takes, padded to `block`.
        """
        rows = max(1, 2048 // block)
        fits = SHARED_MEMORY // (rows * row_bytes)
        programs = 2 if fits >= 4 else 1
        return RowConfig(rows, warps=min(32, max(4, block // 1024)), stages=min(3, 1 + fits // programs), programs=programs)

    def grid(self, rows: int, device: torch.device) -> int:
        """Programs that share the rows."""
        tiles = ceil_div(rows, self.rows)
        return min(tiles, self.programs * multiprocessors(device)) if self.programs else tiles


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    summed_ptr,
    rstd_ptr,
    rows,
    columns,
    x_stride,
    residual_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0)
            # The rounded sum is what a decoder layer carries on, so it is also what is normalised.
            x = (x.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
            tl.store(summed_ptr + row * columns + column, x, mask=inside)
        wide = x.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(wide * wide, 1) / columns + tl.full((), eps, tl.float32))
        normed = (wide * rstd[:, None]).to(x_ptr.dtype.element_ty).to(tl.float32) * weight
        tl.store(y_ptr + row * columns + column, normed.to(y_ptr.dtype.element_ty), mask=inside)
        one_row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        tl.store(rstd_ptr + one_row, rstd, mask=one_row < rows)


@triton.jit
def _backward(
    grad_ptr,
    grad_summed_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    rows,
    columns,
    grad_stride,
    grad_summed_stride,
    x_stride,
    HAS_GRAD_SUMMED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = x * rstd
        dweight += grad * normed
        scaled = grad * weight
        dx = (scaled - normed * (tl.sum(scaled * normed, 1) / columns)[:, None]) * rstd
        if HAS_GRAD_SUMMED:
            dx += tl.load(grad_summed_ptr + row * grad_summed_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * columns + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    one_column = tl.arange(0, BLOCK)
    partial = partial_ptr + tl.program_id(0).to(tl.int64) * columns + one_column
    tl.store(partial, tl.sum(dweight, 0), mask=one_column < columns)


@triton.jit
def _sum_partials(partial_ptr, out_ptr, partials, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, partials, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < partials) & (column < columns)
        total += tl.load(partial_ptr + row.to(tl.int64) * columns + column, mask=inside, other=0.0)
    one_column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + one_column, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=one_column < columns)


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, config: RowConfig | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(y, summed or None, rstd [rows] float32); y has the promoted dtype of x and weight, all outputs contiguous."""
    flat, weight = as_rows(x), weight.contiguous()
    flat_residual = None if residual is None else as_rows(residual)
    rows, columns = flat.shape
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    summed = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(x.shape[:-1].numel(), dtype=torch.float32, device=x.device)
    if rows and columns:
        block = power_of_2(columns)
        config = config or RowConfig.single(block)
        _forward[(config.grid(rows, x.device),)](
            flat,
            flat_residual,
            weight,
            y,
            summed,
            rstd,
            rows,
            columns,
            flat.stride(0),
            0 if flat_residual is None else flat_residual.stride(0),
            eps,
            HAS_RESIDUAL=residual is not None,
            ROWS=config.rows,
            BLOCK=block,
            STAGES=config.stages,
            num_warps=config.warps,
        )
    return y, summed, rstd


def backward(
    grad: Tensor, grad_summed: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor, config: RowConfig | None = None
) -> tuple[Tensor, Tensor]:
    """(dX in x's dtype, dW in weight's dtype) of y = rms_norm(x); grad_summed, when given, is added to dX."""
    flat, flat_grad, weight = as_rows(x), as_rows(grad), weight.contiguous()
    flat_summed = None if grad_summed is None else as_rows(grad_summed)
    rows, columns = flat.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not rows or not columns:
        return dx, torch.zeros_like(weight)
    block = power_of_2(columns)
    config = config or RowConfig.of(block, block * x.element_size() * (2 if grad_summed is None else 3))
    programs = config.grid(rows, x.device)
    partial = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
    _backward[(programs,)](
        flat_grad,
        flat_summed,
        flat,
        weight,
        rstd,
        dx,
        partial,
        rows,
        columns,
        flat_grad.stride(0),
        0 if flat_summed is None else flat_summed.stride(0),
        flat.stride(0),
        HAS_GRAD_SUMMED=grad_summed is not None,
        ROWS=config.rows,
        BLOCK=block,
        STAGES=config.stages,
        num_warps=config.warps,
    )
    return dx, sum_partials(partial, weight.dtype)


def sum_partials(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Column sums of partial [programs, columns] float32 in a fixed order, rounded once to `dtype`."""
    partials, columns = partial.shape
    total = torch.empty(columns, dtype=dtype, device=partial.device)
    _sum_partials[(ceil_div(columns, 32),)](partial, total, partials, columns, ROWS=64, BLOCK=32, num_warps=4)
    return total
