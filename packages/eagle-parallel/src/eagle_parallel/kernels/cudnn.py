"""torch's cuDNN attention, called through aten: per segment a rectangle of earlier keys and a causal square, merged in float32.

cuDNN aligns causal masks at the upper left corner, so a segment with more keys than queries takes two calls. On Hopper it is
nearly twice as fast as the bundled FlashAttention-2; short segments pay one launch and one plan each. CUDA, bfloat16 or float16.
torch does not ask cuDNN for a deterministic backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eagle_parallel.kernels.fused_merge import merge_into
from eagle_parallel.kernels.segments import Segments, Span, dense
from eagle_parallel.kernels.truth import attention_backward, attention_forward

aten = torch.ops.aten

# Releases of cuDNN refuse a single query or key, or answer wrongly: such parts are computed in plain torch, in float32.
_SHORTEST = 2


def why_not(device: torch.device) -> str | None:
    """None, or why this kernel cannot run on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"cuDNN attention needs a CUDA device, not {device.type}"
    if not torch.backends.cudnn.is_available() or torch.cuda.get_device_capability(device) < (8, 0):
        return "cuDNN attention needs cuDNN and compute capability 8.0 or newer"
    return None


class CudnnKernel:
    """Forward and backward of `aten._scaled_dot_product_cudnn_attention*`, segment by segment."""

    name = "cudnn"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
        for rows, parts in rectangles(segments):
            found = [self._forward(q[rows], k[keys], v[keys], causal, scale) for keys, causal in parts]
            if len(found) == 2:
                merge_into(out[rows], lse[:, rows], *found[0], *found[1])
            else:
                out[rows], lse[:, rows] = found[0]
        return out, lse

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (k, v))
        for rows, parts in rectangles(segments):
            partial: list[Tensor] = []
            for keys, causal in parts:
                grads = self._backward(grad_out[rows], q[rows], k[keys], v[keys], out[rows], lse[:, rows], causal, scale)
                partial.append(grads[0])
                dk[keys], dv[keys] = grads[1], grads[2]
            if len(partial) == 2:
                torch.add(partial[0], partial[1], out=dq[rows])  # computed in float32, rounded once
            else:
                dq[rows] = partial[0]
        return dq, dk, dv

    def _forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        if min(q.shape[0], k.shape[0]) < _SHORTEST:
            return attention_forward(q, k, v, [_whole(q, k, causal)], scale)
        result = aten._scaled_dot_product_cudnn_attention(
            _batched(q), _batched(k), _batched(v), None, True, 0.0, causal, False, scale=scale
        )
        return result[0][0].transpose(0, 1), result[1].reshape(q.shape[1], q.shape[0])

    def _backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, ...]:
        if min(q.shape[0], k.shape[0]) < _SHORTEST:
            return attention_backward(grad_out, q, k, v, out, lse, [_whole(q, k, causal)], scale)
        seed, offset = torch.zeros(2, dtype=torch.int64, device=q.device).unbind()
        grads = aten._scaled_dot_product_cudnn_attention_backward(
            _batched(grad_out),
            _batched(q),
            _batched(k),
            _batched(v),
            _batched(out),
            lse[None, :, :, None].contiguous(),
            seed,
            offset,
            None,
            # Borders that are given, even empty ones, mean packed sequences to this operator.
            None,
            None,
            q.shape[0],
            k.shape[0],
            0.0,
            causal,
            scale=scale,
        )
        return tuple(grad[0].transpose(0, 1) for grad in grads)


def rectangles(segments: Segments) -> Iterator[tuple[slice, list[tuple[slice, bool]]]]:
    """For each segment its query rows and one or two (key rows, causal): all earlier keys, then the square on the diagonal."""
    for span in segments.spans():
        yield slice(span.query_start, span.query_end), _parts(span, segments.causal)


def _parts(span: Span, causal: bool) -> list[tuple[slice, bool]]:
    if not causal:
        return [(slice(span.key_start, span.key_end), False)]
    border = span.key_end - (span.query_end - span.query_start)
    square = (slice(border, span.key_end), True)
    return [square] if border == span.key_start else [(slice(span.key_start, border), False), square]


def _whole(q: Tensor, k: Tensor, causal: bool) -> Span:
    """All queries against all keys, causal from the upper left corner as cuDNN's."""
    return Span(0, q.shape[0], 0, k.shape[0], 0 if causal else k.shape[0])


def _batched(tensor: Tensor) -> Tensor:
    """[tokens, heads, head_dim] as [1, heads, tokens, head_dim], a view."""
    return dense(tensor).transpose(0, 1)[None]
