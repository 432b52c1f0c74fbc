"""The float64 answer of a pack and how far an answer is from it, and the limits that the errors must keep.

The truth of a long pack is computed for the query heads of one KV head: float64 attention of 128K tokens for all heads would take
longer than everything that is timed. Errors are norms over the tensor: |answer - truth| / |truth|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from eagle_parallel import Span, attention_backward, attention_forward
from torch import Tensor

from parallel_bench.shared import relative_error

NAMES = ("out", "dq", "dk", "dv")
SAME, MERGED = 1.05, 1.35  # of the bare call's own error: where nothing is merged, where partial results in bf16 are
_ALL_HEADS_TOKENS = 16384


@dataclass(frozen=True)
class Truth:
    """out, dq, dk, dv in float64 for KV heads [first_kv, last_kv) and their query heads."""

    tensors: Mapping[str, Tensor]
    first_kv: int
    last_kv: int
    group: int

    def errors(self, answer: Sequence[Tensor]) -> dict[str, float]:
        """The relative error of [out, dq, dk, dv], by name."""
        found = {}
        for name, tensor in zip(NAMES, answer, strict=True):
            factor = self.group if name in ("out", "dq") else 1
            heads = slice(self.first_kv * factor, self.last_kv * factor)
            found[name] = relative_error(tensor[:, heads], self.tensors[name])
        return found


def truth_of(tensors: Sequence[Tensor], lengths: Sequence[int]) -> Truth:
    """The float64 answer to q, k, v and the gradient of out, [tokens, heads, head_dim]; of long packs for the last KV head."""
    q, k, v, grad_out = tensors
    group = q.shape[1] // k.shape[1]
    first = 0 if sum(lengths) <= _ALL_HEADS_TOKENS else k.shape[1] - 1
    queries, keys = slice(first * group, None), slice(first, None)
    q, k, v, grad_out = q[:, queries].double(), k[:, keys].double(), v[:, keys].double(), grad_out[:, queries].double()
    kv_heads = tensors[1].shape[1]
    spans = [Span(start, end, start, end, 0) for start, end in pairwise([0, *accumulate(lengths)])]
    scale = q.shape[-1] ** -0.5
    out, lse = attention_forward(q, k, v, spans, scale)
    grads = attention_backward(grad_out, q, k, v, out, lse, spans, scale)
    return Truth(dict(zip(NAMES, (out, *grads), strict=True)), first, kv_heads, group)


def limits(kernel: str, algorithm: str, cp_ring: int, cp_ulysses: int, kv_heads: int) -> dict[str, float]:
    """For each tensor the allowed multiple of the bare call's error.

    out and dq are whole in one call of flash unless the ring merges hops; cudnn joins a rectangle and a square wherever a rank
    starts in the middle of a document. dk and dv are sums of bf16 parts as soon as two ranks hold queries of one key.
    """
    merged = cp_ring > 1 and (algorithm == "ring" or kernel == "cudnn")
    summed = cp_ring > 1 or kv_heads % cp_ulysses != 0
    return {name: MERGED if (merged if name in ("out", "dq") else summed) else SAME for name in NAMES}


def wrong(errors: Mapping[str, float], bare: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
    """What is too far from the truth, in words; empty when all is well."""
    return [
        f"{name}: error {errors[name]:.3g} is {errors[name] / bare[name]:.2f}x the bare call's, allowed {allowed[name]:.2f}x"
        for name in NAMES
        if not errors[name] <= allowed[name] * bare[name]
    ]
