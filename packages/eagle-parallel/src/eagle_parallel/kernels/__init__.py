"""Attention kernels behind one small interface: forward gives (out, lse), backward needs only them and the inputs."""

from eagle_parallel.kernels.base import Kernel, KernelName, available, choose_kernel
from eagle_parallel.kernels.segments import Segments, Span

__all__ = ["Kernel", "KernelName", "Segments", "Span", "available", "choose_kernel"]
