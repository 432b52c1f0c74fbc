"""The one interface of attention kernels, which of them run here, and the choice among them.

A kernel gives (out, lse) forward and needs only the inputs and (out, lse) backward; out and lse may be those of a softmax over
more keys than it is given. Callers never pass it an empty call. Kernels keep no state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from eagle_parallel.errors import NotYetSupported
from eagle_parallel.kernels import cudnn, flash, flash_attn
from eagle_parallel.kernels.segments import Segments
from eagle_parallel.kernels.truth import TruthKernel

KernelName = Literal["truth", "flash", "cudnn", "fa"]


class Kernel(Protocol):
    """q and out are [queries, query_heads, head_dim]; k and v [keys, kv_heads, head_dim], views whose last dimension is dense.

    lse is [query_heads, queries], natural logarithm, float32 (float64 for float64). Gradients are shaped like q, k, v, in the
    inputs' dtype or wider.
    """

    name: str

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]: ...


# Each gives None or the reason why it cannot run on a device, and makes the kernel.
_KERNELS: Mapping[str, tuple[Callable[[torch.device], str | None], Callable[[], Kernel]]] = {
    "truth": (lambda _device: None, TruthKernel),
    "flash": (flash.why_not, flash.FlashKernel),
    "cudnn": (cudnn.why_not, cudnn.CudnnKernel),
    "fa": (flash_attn.why_not, flash_attn.FlashAttnKernel),
}


def available(device: torch.device | str = "cuda") -> dict[str, str | None]:
    """For each kernel None if it runs on a device, else why not."""
    return {name: why_not(torch.device(device)) for name, (why_not, _) in _KERNELS.items()}


def choose_kernel(kernel: str, q: Tensor) -> Kernel:
    """The kernel of a name, or for "auto": flash where q is bfloat16 or float16 on CUDA and its heads fit, else truth.

    Raises:
        ValueError: no kernel has this name.
        NotYetSupported: it cannot run here, or not with this dtype or head_dim; the message says why.
    """
    half = q.dtype in (torch.bfloat16, torch.float16)
    fits = half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    if kernel == "auto":
        return flash.FlashKernel() if fits and flash.why_not(q.device) is None else TruthKernel()
    if kernel not in _KERNELS:
        raise ValueError(f"kernel {kernel!r} is unknown; use one of auto, {', '.join(_KERNELS)}.")
    why_not, make = _KERNELS[kernel]
    reason = why_not(q.device)
    if reason is None and kernel != "truth" and not fits:
        reason = f"it takes bfloat16 or float16 with head_dim a multiple of 8 up to 256, not {q.dtype} with {q.shape[-1]}"
    if reason is not None:
        raise NotYetSupported(f"kernel {kernel!r} cannot run here: {reason}. Use kernel='auto'.")
    return make()
