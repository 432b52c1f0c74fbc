"""The kernel behind `fused_merge`, apart so that importing the package imports no triton."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _merge(
    out_ptr,
    lse_ptr,
    out_a_ptr,
    lse_a_ptr,
    out_b_ptr,
    lse_b_ptr,
    tokens,
    out_token,
    out_head,
    lse_head,
    a_token,
    a_head,
    lse_a_head,
    b_token,
    b_head,
    lse_b_head,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1).to(tl.int64)
    there = token < tokens
    lse_a = tl.load(lse_a_ptr + head * lse_a_head + token, mask=there, other=0.0).to(tl.float32)
    lse_b = tl.load(lse_b_ptr + head * lse_b_head + token, mask=there, other=0.0).to(tl.float32)
    top = tl.maximum(lse_a, lse_b)
    tl.store(lse_ptr + head * lse_head + token, top + tl.log(tl.exp(lse_a - top) + tl.exp(lse_b - top)), mask=there)
    # exp(l_a - l) as a sigmoid of l_a - l_b, as `merge_attention` has it.
    share = tl.sigmoid(lse_a - lse_b)[:, None]
    entry = tl.arange(0, BLOCK)[None, :]
    inside = there[:, None] & (entry < HEAD_DIM)
    a = tl.load(out_a_ptr + token[:, None] * a_token + head * a_head + entry, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(out_b_ptr + token[:, None] * b_token + head * b_head + entry, mask=inside, other=0.0).to(tl.float32)
    merged = (a * share + b * (1.0 - share)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token[:, None] * out_token + head * out_head + entry, merged, mask=inside)


def launch(out: Tensor, lse: Tensor, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, tokens: int) -> None:
    """Arguments of `fused_merge.merge_into`, last dimensions dense; `tokens` of one head are a program's."""
    rows, heads, head_dim = out.shape
    if not out.numel():
        return
    _merge[(-(-rows // tokens), heads)](
        *(out, lse, out_a, lse_a, out_b, lse_b, rows),
        *(out.stride(0), out.stride(1), lse.stride(0)),
        *(out_a.stride(0), out_a.stride(1), lse_a.stride(0)),
        *(out_b.stride(0), out_b.stride(1), lse_b.stride(0)),
        HEAD_DIM=head_dim,
        BLOCK=1 << max(0, head_dim - 1).bit_length(),
        TOKENS=tokens,
        num_warps=4,
    )
