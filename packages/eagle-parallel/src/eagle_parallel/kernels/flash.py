"""torch's bundled FlashAttention-2, called through aten: one varlen call for all segments, causal bottom-right, GQA included.

CUDA, bfloat16 or float16. The aten operators are used because the public wrapper does not take an outside (out, lse) backward.
Deterministic in the backward pass under `torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle_parallel.kernels.segments import Segments, dense

aten = torch.ops.aten


def why_not(device: torch.device) -> str | None:
    """None, or why this kernel cannot run on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"torch's flash attention needs a CUDA device, not {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "torch's flash attention needs compute capability 8.0 or newer"
    return None


class FlashKernel:
    """Forward and backward of `aten._flash_attention_*` on packed segments."""

    name = "flash"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = aten._flash_attention_forward(
            dense(q),
            dense(k),
            dense(v),
            segments.cu_queries,
            segments.cu_keys,
            segments.longest_queries,
            segments.longest_keys,
            0.0,
            segments.causal,
            False,
            scale=scale,
        )
        return out, lse

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout the random state is never read, but its dtype is. Views: deterministic mode fills what is freshly made,
        # and not every release can fill unsigned integers.
        state, unused = (torch.empty(size, dtype=torch.int64, device=q.device).view(torch.uint64) for size in (2, 0))
        return aten._flash_attention_backward(
            dense(grad_out),
            dense(q),
            dense(k),
            dense(v),
            out,
            lse.contiguous(),
            segments.cu_queries,
            segments.cu_keys,
            segments.longest_queries,
            segments.longest_keys,
            0.0,
            segments.causal,
            state,
            unused,
            scale=scale,
        )
