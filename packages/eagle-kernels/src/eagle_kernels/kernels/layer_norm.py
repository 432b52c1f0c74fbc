"""Triton kernels of LayerNorm, forward and backward.

A fixed number of programs walk over tiles of whole rows held in registers, with the next loads in flight; each tensor is read and
written once. The mean comes first and then the centred squares, so that a large mean costs no accuracy. Backward's programs keep
their share of dW and db in float32 registers; a second kernel sums the shares in a fixed order, so both are deterministic.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import as_rows, power_of_2
from eagle_kernels.kernels.rms_norm import SHARED_MEMORY, RowConfig, sum_partials

FORWARD_LANES = 4096
"""Lanes of a forward tile up to which rows are joined: two rows of SigLIP's 1152 columns."""
BACKWARD_LANES = 2048
"""Two tensors and two accumulators live at once in backward."""


def row_config(lanes: int, block: int, row_bytes: int) -> RowConfig:
    """Four warps for a tile of `lanes`; as many programs with two more tiles in flight as shared memory holds, at most 4.

    Args:
        lanes: FORWARD_LANES or BACKWARD_LANES.
        block: lanes of a row, a power of two; a row longer than `lanes` is a tile of its own.
        row_bytes: bytes that one row of all tensors read in the loop takes, padded to `block`.
    """
    rows = max(1, lanes // block)
    fits = SHARED_MEMORY // (rows * row_bytes)
    programs = max(1, min(4, fits // 2))
    return RowConfig(rows, warps=min(32, 4 * rows * block // lanes), stages=min(3, 1 + fits // programs), programs=programs)


@triton.jit
def _forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    columns,
    x_stride,
    eps,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(x, 1) / columns
        centred = tl.where(inside, x - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 1) / columns + tl.full((), eps, tl.float32))
        y = centred * rstd[:, None] * weight
        if HAS_BIAS:
            y += bias
        tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)
        one_row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        tl.store(mean_ptr + one_row, mean, mask=one_row < rows)
        tl.store(rstd_ptr + one_row, rstd, mask=one_row < rows)


@triton.jit
def _backward(
    grad_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    columns,
    grad_stride,
    x_stride,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(weight_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros([ROWS, BLOCK], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = (tile * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        inside = (row < rows) & (column < columns)
        x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        # Lanes outside hold grad = 0, so whatever `normed` is there, it enters no sum.
        normed = (x - mean) * rstd
        dweight += grad * normed
        if HAS_BIAS:
            dbias += grad
        scaled = grad * weight
        slope = (tl.sum(scaled * normed, 1) / columns)[:, None]
        dx = (scaled - (tl.sum(scaled, 1) / columns)[:, None] - normed * slope) * rstd
        tl.store(dx_ptr + row * columns + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    one_column = tl.arange(0, BLOCK)
    share = tl.program_id(0).to(tl.int64) * columns + one_column
    tl.store(dweight_ptr + share, tl.sum(dweight, 0), mask=one_column < columns)
    if HAS_BIAS:
        tl.store(dbias_ptr + share, tl.sum(dbias, 0), mask=one_column < columns)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, config: RowConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y in x's dtype, mean, rstd), contiguous; mean and rstd = 1 / sqrt(var + eps) are [rows] float32."""
    flat, rows, columns = as_rows(x), x.shape[:-1].numel(), x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel():
        block = power_of_2(columns)
        config = config or row_config(FORWARD_LANES, block, block * x.element_size())
        _forward[(config.grid(rows, x.device),)](
            flat,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            y,
            mean,
            rstd,
            rows,
            columns,
            flat.stride(0),
            eps,
            HAS_BIAS=bias is not None,
            ROWS=config.rows,
            BLOCK=block,
            STAGES=config.stages,
            num_warps=config.warps,
        )
    return y, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, rstd: Tensor, config: RowConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dX, dW, db) of y = layer_norm(x), in the dtypes of x and weight; db has no elements when there is no bias."""
    flat, flat_grad = as_rows(x), as_rows(grad)
    rows, columns = flat.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(weight if has_bias else weight[:0])
    block = power_of_2(columns)
    config = config or row_config(BACKWARD_LANES, block, 2 * block * x.element_size())
    programs = config.grid(rows, x.device)
    dweight = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
    dbias = torch.empty((programs, columns if has_bias else 0), dtype=torch.float32, device=x.device)
    _backward[(programs,)](
        flat_grad,
        flat,
        weight.contiguous(),
        mean,
        rstd,
        dx,
        dweight,
        dbias if has_bias else None,
        rows,
        columns,
        flat_grad.stride(0),
        flat.stride(0),
        HAS_BIAS=has_bias,
        ROWS=config.rows,
        BLOCK=block,
        STAGES=config.stages,
        num_warps=config.warps,
    )
    return dx, sum_partials(dweight, weight.dtype), sum_partials(dbias, weight.dtype) if has_bias else weight.new_empty(0)
