"""The kernel behind `row_sum`, apart so that importing the package imports no triton."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from eagle_parallel.attention.row_sum import Pair

_ENTRIES = 2048  # of a program


@triton.jit
def _sum_rows(
    table_ptr,
    target_k,
    target_v,
    first_k,
    first_v,
    second_k,
    second_v,
    rows,
    most,
    first_rows,
    target_k_row,
    target_v_row,
    first_k_row,
    first_v_row,
    second_k_row,
    second_v_row,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    entry = tl.arange(0, BLOCK)[None, :]
    there = row < rows
    target, target_row, first, first_row, second, second_row = (
        target_k,
        target_k_row,
        first_k,
        first_k_row,
        second_k,
        second_k_row,
    )
    if tl.program_id(1) == 1:
        target, target_row, first, first_row, second, second_row = (
            target_v,
            target_v_row,
            first_v,
            first_v_row,
            second_v,
            second_v_row,
        )
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for column in range(0, most):
        source = tl.load(table_ptr + row * most + column, mask=there, other=-1).to(tl.int64)[:, None]
        of_first = (source >= 0) & (source < first_rows) & (entry < WIDTH)
        of_second = (source >= first_rows) & (entry < WIDTH)
        total += tl.load(first + source * first_row + entry, mask=of_first, other=0.0).to(tl.float32)
        total += tl.load(second + (source - first_rows) * second_row + entry, mask=of_second, other=0.0).to(tl.float32)
    place = target + row[:, None] * target_row + entry
    tl.store(place, total.to(target.dtype.element_ty), mask=there[:, None] & (entry < WIDTH))


def launch(table: Tensor, first_rows: int, target: Pair, first: Pair, second: Pair) -> None:
    """Arguments of `RowSum.into`; sources whose heads are not dense in a row are copied first."""
    rows, heads, head_dim = target[0].shape
    width = heads * head_dim
    block = 1 << (width - 1).bit_length()
    each = max(1, _ENTRIES // block)
    tensors = (*target, *(_dense_rows(tensor) for tensor in (*first, *second)))
    _sum_rows[(-(-rows // each), 2)](
        table,
        *tensors,
        *(rows, table.shape[1], first_rows),
        *(tensor.stride(0) for tensor in tensors),
        WIDTH=width,
        BLOCK=block,
        ROWS=each,
        num_warps=4,
    )


def _dense_rows(tensor: Tensor) -> Tensor:
    head_dim = tensor.shape[2]
    dense = tensor.stride(2) == 1 and (tensor.shape[1] == 1 or tensor.stride(1) == head_dim)
    return tensor if dense else tensor.contiguous()
