"""What launchers share: how a tensor becomes rows for a kernel, and the size of the device.

A kernel sees two dimensions, [rows, columns] with unit column stride and one row stride. Leading dimensions that collapse to one
stride are viewed; anything else is copied once.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def as_rows(tensor: Tensor) -> Tensor:
    """[..., columns] as [rows, columns] with unit column stride; a view where the strides allow it, a copy where not."""
    rows = tensor.numel() // max(1, tensor.shape[-1])
    flat = tensor.reshape(rows, tensor.shape[-1])
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


@cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 for the interpreter, so that persistent kernels loop there too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for positive integers."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n, 1 for n = 0: the length of a block that covers n lanes."""
    return 1 << max(0, n - 1).bit_length()
