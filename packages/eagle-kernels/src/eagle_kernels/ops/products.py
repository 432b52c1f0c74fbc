"""Matrix products whose result is summed in float32 while their operands are short: dW over chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eagle_kernels.arguments import compute_dtype


def chunks(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of equal chunks of at most `most` rows, their size a multiple of 128 where that fits."""
    if not rows:
        return
    count = -(-rows // most)
    size = min(most, -(-rows // count // 128) * 128)
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b in float32 (float64 for float64); accumulated inside the product where the device offers it.

    Args:
        total: [m, n] float32, overwritten, or None for zero.
        a: [m, k].
        b: [k, n].
    """
    wide = compute_dtype(a, b)
    if a.is_cuda and a.dtype == b.dtype != wide:
        if total is None:
            return torch.mm(a, b, out_dtype=wide)
        return torch.addmm(total, a, b, out_dtype=wide, out=total)
    a, b = a.to(wide), b.to(wide)
    return torch.mm(a, b) if total is None else total.addmm_(a, b)
