"""Join two partial attention results over disjoint sets of keys into the result over both (section A.7).

The step that ring attention repeats, and that a path with a separate diagonal block needs once. Computed in float32 or float64
without overflow, also where one or both parts saw no key at all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """l = log(exp(l_a) + exp(l_b)); o = exp(l_a - l) o_a + exp(l_b - l) o_b.

    Args:
        out_a: [tokens, heads, head_dim], the softmax average over the first set of keys.
        lse_a: [heads, tokens], its natural log-sum-exp, -inf where the query saw no key.
        out_b: the same over the second set, dtype of out_a.
        lse_b: its log-sum-exp.

    Returns:
        (out, lse) over both sets: out in out_a's dtype (rounded once), lse in lse_a's. No key at all gives 0 and -inf.

    Raises:
        ValueError: shapes do not fit each other.
    """
    if out_b.shape != out_a.shape:
        raise ValueError(f"out_b has shape {list(out_b.shape)} but out_a has {list(out_a.shape)}.")
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if out_a.dim() != 3 or lse.shape != (out_a.shape[1], out_a.shape[0]):
            raise ValueError(f"{name} has shape {list(lse.shape)}, expected [heads, tokens] of out_a {list(out_a.shape)}.")
    lse = torch.logaddexp(lse_a, lse_b)
    # exp(l_a - l) as a sigmoid of l_a - l_b: the rounding of l, large where scores are large, stays out of the weights.
    empty = lse == float("-inf")
    difference = (lse_a - lse_b).masked_fill(empty, 0.0)
    weight_a, weight_b = (sign.sigmoid().masked_fill(empty, 0.0).T[..., None] for sign in (difference, -difference))
    return (weight_a * out_a + weight_b * out_b).to(out_a.dtype), lse
