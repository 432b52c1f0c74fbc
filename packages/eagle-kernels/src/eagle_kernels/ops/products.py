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


def wave_chunks(rows: int, most: int, columns: int, multiprocessors: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of chunks of at most `most` rows whose product with `columns` columns keeps every multiprocessor busy.

    A matrix product is computed in tiles of 128 x 256, so many at a time as there are multiprocessors; of the chunk sizes between
    three quarters of `most` and `most` the one whose last wave of tiles is fullest is taken, and the end is not left a splinter.
    """

    def busy(size: int) -> float:
        tiles = -(-size // 128) * -(-columns // 256)
        return tiles / (-(-tiles // multiprocessors) * multiprocessors)

    sizes = range(most // 128 * 128, most * 3 // 4, -128)
    size = max(sizes, key=busy, default=most)
    begin = 0
    while begin < rows:
        left = rows - begin
        halved = min(most, -(-left // 256) * 128)
        end = begin + (left if left <= most else size if left - size >= size // 2 else halved)
        yield begin, end
        begin = end


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
