"""Choose and describe the implementation behind an operator: Triton kernels, or the plain PyTorch twin.

The choice follows the device and dtype of the tensors and nothing else, so it is the same in every run. The environment variable
`EAGLE_KERNELS_IMPLEMENTATION` (auto, torch, triton; read once at import) or `use_implementation` overrides it. Nothing falls
back silently: a forced choice that cannot run raises, and `describe` says in words what runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

CHOICES = ("auto", "torch", "triton")
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_COLUMNS = 65536
"""Longest row that a row-wise kernel holds in registers; longer rows run as plain PyTorch."""

_choice = os.environ.get("EAGLE_KERNELS_IMPLEMENTATION", "auto")
if _choice not in CHOICES:
    raise ValueError(f"EAGLE_KERNELS_IMPLEMENTATION is {_choice!r}; set it to one of {', '.join(CHOICES)}.")
_has_triton = find_spec("triton") is not None


@contextmanager
def use_implementation(name: str) -> Iterator[None]:
    """Within the block every operator uses `name`: "auto", "torch" or "triton". For tests and comparisons; not thread-safe.

    Raises:
        ValueError: name is none of the three.
    """
    global _choice
    if name not in CHOICES:
        raise ValueError(f"use_implementation: name must be one of {', '.join(CHOICES)}, got {name!r}.")
    before, _choice = _choice, name
    try:
        yield
    finally:
        _choice = before


def interpreted() -> bool:
    """True when Triton kernels run in its interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(*tensors: Tensor) -> bool:
    """True when the kernels run for these tensors (on one device, of checked float dtypes).

    Raises:
        RuntimeError: "triton" is forced, and Triton is not installed or the tensors are on a device it does not run on.
    """
    if _choice == "torch" or any(tensor.dtype not in KERNEL_DTYPES for tensor in tensors):
        return False
    on_gpu = tensors[0].is_cuda
    if _choice == "auto":
        return on_gpu and _has_triton
    if not _has_triton:
        raise RuntimeError("The Triton implementation is forced but triton is not installed; pip install triton.")
    if not on_gpu and not interpreted():
        raise RuntimeError(
            f"The Triton implementation is forced for tensors on {tensors[0].device}; move them to a GPU, or set "
            "TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter."
        )
    return True


def require_kernels(operator: str, tensor: Tensor) -> None:
    """RuntimeError unless kernels can run on this tensor's device; the registered operators have no other path.

    The public functions take every device: they call the registered operator only where `runs_triton` says so.
    """
    if not _has_triton or not (tensor.is_cuda or interpreted()):
        raise RuntimeError(
            f"torch.ops.eagle_kernels.{operator} is the Triton kernel and cannot run on {tensor.device}; call "
            f"eagle_kernels.{operator}, which runs plain PyTorch there."
        )


def launches(tensor: Tensor) -> bool:
    """True where a backward formula may launch its kernel itself, which spares the host half of a small kernel's time.

    Not while a graph is traced (the tensor is then no plain one) nor under create_graph: both have to meet the operator.
    """
    return type(tensor) is Tensor and not torch.is_grad_enabled()


def describe(operator: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """(implementation, why) of `operator` for tensors of this device and dtype: implementation is "triton" or "torch"."""
    if _choice == "torch":
        return "torch", "plain PyTorch, forced by EAGLE_KERNELS_IMPLEMENTATION or use_implementation"
    if dtype not in KERNEL_DTYPES:
        return "torch", f"plain PyTorch; {operator} has kernels for bfloat16, float16 and float32, not {dtype}"
    if not _has_triton:
        return "torch", "plain PyTorch; triton is not installed"
    if device.type == "cuda":
        return "triton", "fused kernel"
    if _choice == "triton":
        return "triton", "fused kernel in Triton's interpreter, forced"
    return "torch", f"plain PyTorch; tensors on {device.type}, kernels need a GPU"
