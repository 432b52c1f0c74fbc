"""Triton kernel of `merge.merge_attention`: both parts are read once and the result is written once; torch makes eight passes.

For GPUs, where torch brings triton along; `merge_into` takes torch's way without it. float32 inside, one rounding at the end.
"""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from eagle_parallel.kernels.merge import merge_attention

TOKENS = 16


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def merge_into(out: Tensor, lse: Tensor, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    """Write the attention over both sets of keys, each of which every query sees a key of.

    The written tensors must not overlap the others: several threads of the kernel read the same log-sum-exp.

    Args:
        out: [tokens, heads, head_dim], written; may be a view with a dense last dimension.
        lse: [heads, tokens], written; may be a view with a dense last dimension.
        out_a: shaped like out, the result over the first set of keys.
        lse_a: [heads, tokens], its natural log-sum-exp.
        out_b: the same over the second set.
        lse_b: its log-sum-exp.
    """
    if not (out.is_cuda and _has_triton()) or out.dtype == torch.float64:
        wide = torch.promote_types(out.dtype, torch.float32)
        merged = merge_attention(out_a.to(wide), lse_a, out_b.to(wide), lse_b)
        out.copy_(merged[0])
        lse.copy_(merged[1])
        return
    from eagle_parallel.kernels.merge_kernel import launch

    parts = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (out_a, lse_a, out_b, lse_b)]
    launch(out, lse, parts[0], parts[1], parts[2], parts[3], TOKENS)
