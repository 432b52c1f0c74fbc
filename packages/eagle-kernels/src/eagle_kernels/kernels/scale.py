"""Triton kernel of tensor * number, rounded to another dtype on the way; the number stays on the device.

torch's own product with a 0-d tensor neither vectorises nor converts at the speed of memory, and the float32 gradient of a
language model's head is gigabytes.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.kernels.launch import ceil_div

BLOCK, WARPS = 2048, 8


@triton.jit
def _scale(x_ptr, factor_ptr, y_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < count).to(tl.float32)
    y = x * tl.load(factor_ptr).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=place < count)


def scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor in float32, rounded once to `dtype`: a new contiguous tensor shaped like x; factor has one element."""
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel():
        _scale[(ceil_div(x.numel(), BLOCK),)](x, factor, y, x.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return y
