"""Checks of operator arguments, so that a wrong call fails with the argument's name instead of inside a matrix product.

A wrong dtype raises TypeError, a wrong shape or device raises ValueError. The checks read metadata only, never a tensor's
values, so they cost no host synchronisation on an accelerator.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which operators do their arithmetic: float64 when any tensor is float64, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_float(operator: str, **tensors: Tensor) -> None:
    """TypeError unless every tensor is bfloat16, float16, float32 or float64."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}.")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{operator}: {name} has dtype {tensor.dtype}; convert it to bfloat16, float16, float32 or float64.")


def check_same_device(operator: str, reference: str, device: torch.device, **tensors: Tensor) -> None:
    """ValueError unless every tensor lies on `device`, the device of the argument called `reference`."""
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device} but {reference} is on {device}; move one of them.")


def check_same_dtype(operator: str, reference: str, dtype: torch.dtype, **tensors: Tensor) -> None:
    """TypeError unless every tensor has `dtype`, the dtype of the argument called `reference`."""
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{operator}: {name} is {tensor.dtype} but {reference} is {dtype}; cast one of them.")


def check_shape(operator: str, shape: tuple[int, ...], because: str, **tensors: Tensor) -> None:
    """ValueError unless every tensor has exactly `shape`; `because` ends the message (why this shape is expected)."""
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{operator}: {name} has shape {list(tensor.shape)}, expected {list(shape)} {because}.")


def check_eps(operator: str, eps: float) -> None:
    """ValueError unless `eps` is a non-negative number."""
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not eps >= 0:
        raise ValueError(f"{operator}: eps must be a non-negative number, got {eps!r}.")
