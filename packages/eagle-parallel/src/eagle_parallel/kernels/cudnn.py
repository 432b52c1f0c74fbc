"""torch's cuDNN attention, called through aten: per segment a rectangle of earlier keys and a causal square, merged in float32.

cuDNN aligns causal masks at the upper left corner, so a segment with more keys than queries takes two calls. On Hopper it is
nearly twice as fast as the bundled FlashAttention-2; short segments pay one launch each, and every new length a plan of some
50 ms, kept for the process. CUDA, bfloat16 or float16. torch does not ask cuDNN for a deterministic backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle_parallel.kernels.fused_merge import merge_into
from eagle_parallel.kernels.segments import Segments, Span, dense
from eagle_parallel.kernels.truth import attention_backward, attention_forward

aten = torch.ops.aten

# Releases of cuDNN refuse a single query or key, or answer wrongly: such parts are computed in plain torch, in float32.
_SHORTEST = 2
_RUN = 8192  # rows of results that are held until they are copied to their place together
_KeysValues = tuple[Tensor, Tensor]


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
        out, logs = _Rows(q, segments.queries), []
        key_lengths = _key_parts(segments)
        keys = zip(_parts(k, key_lengths), _parts(v, key_lengths), strict=True)
        for queries, (earlier, square) in zip(_parts(q, segments.query_lengths), _pairs(keys), strict=True):
            found = [
                _forward(queries, *part, causal, scale) for part, causal in ((earlier, False), (square, True)) if _some(part)
            ]
            if len(found) == 2:
                merged = torch.empty_like(found[0][0]), torch.empty_like(found[0][1])
                merge_into(merged[0], merged[1], *found[0], *found[1])
                found = [merged]
            out.add(found[0][0])
            logs.append(found[0][1])
        return out.all(), logs[0] if len(logs) == 1 else torch.cat(logs, 1)

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = _Rows(q, segments.queries), _Rows(k, segments.keys), _Rows(v, segments.keys)
        lengths, key_lengths = segments.query_lengths, _key_parts(segments)
        keys = zip(_parts(k, key_lengths), _parts(v, key_lengths), strict=True)
        rows = zip(*(_parts(tensor, lengths) for tensor in (grad_out, q, out)), lse.split(lengths, 1), strict=True)
        unused = torch.zeros(2, dtype=torch.int64, device=q.device).unbind()
        for (grad, queries, answer, log), (earlier, square) in zip(rows, _pairs(keys), strict=True):
            log = log[None, :, :, None].contiguous()
            partial: list[Tensor] = []
            for part, causal in ((earlier, False), (square, True)):
                if _some(part):
                    grads = _backward(grad, queries, *part, answer, log, unused, causal, scale)
                    partial.append(grads[0])
                    dk.add(grads[1])
                    dv.add(grads[2])
            dq.add(partial[0] if len(partial) == 1 else partial[0].add_(partial[1]))  # computed in float32, rounded once
        return dq.all(), dk.all(), dv.all()


@dataclass
class _Rows:
    """Results of [rows, heads, head_dim], one segment after the other, brought together a run of short ones at a time.

    One copy for many segments costs the host little, and only a run's rows are in memory twice. A single result is not copied.
    """

    like: Tensor
    rows: int
    _held: list[Tensor] = field(default_factory=list)
    _held_rows: int = 0
    _done: int = 0
    _whole: Tensor | None = None

    def add(self, piece: Tensor) -> None:
        self._held.append(piece.to(self.like.dtype))  # a part of one row comes in float32
        self._held_rows += piece.shape[0]
        if self._held_rows >= _RUN and self._held_rows < self.rows:
            self._flush()

    def _flush(self) -> None:
        if self._whole is None:
            self._whole = self.like.new_empty((self.rows, *self.like.shape[1:]))
        end = self._done + self._held_rows
        torch.cat(self._held, out=self._whole[self._done : end])
        self._held, self._held_rows, self._done = [], 0, end

    def all(self) -> Tensor:
        """Every row that was added."""
        if self._whole is None:
            return self._held[0] if len(self._held) == 1 else torch.cat(self._held)
        if self._held:
            self._flush()
        return self._whole


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """out [queries, heads, head_dim] and lse [heads, queries] of one call; q, k and v are [1, heads, tokens, head_dim]."""
    if min(q.shape[2], k.shape[2]) < _SHORTEST:
        q, k, v = map(_rows, (q, k, v))
        return attention_forward(q, k, v, [_span(q, k, causal)], scale)
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, False, scale=scale)
    return _rows(out), lse.reshape(q.shape[1], q.shape[2])


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    unused: Sequence[Tensor],
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """dq, dk, dv [tokens, heads, head_dim] of one call; tensors are [1, heads, tokens, head_dim], lse [1, heads, queries, 1]."""
    if min(q.shape[2], k.shape[2]) < _SHORTEST:
        grad_out, q, k, v, out = map(_rows, (grad_out, q, k, v, out))
        return attention_backward(grad_out, q, k, v, out, lse[0, :, :, 0], [_span(q, k, causal)], scale)
    # Borders that are given, even empty ones, mean packed sequences to this operator.
    borders = (None, None, q.shape[2], k.shape[2])
    grads = aten._scaled_dot_product_cudnn_attention_backward(
        grad_out, q, k, v, out, lse, *unused, None, *borders, 0.0, causal, scale=scale
    )
    return tuple(map(_rows, grads))


def _key_parts(segments: Segments) -> list[int]:
    """For each segment two lengths of keys: all earlier ones, and the causal square on the diagonal; either may be 0."""
    pairs = zip(segments.query_lengths, segments.key_lengths, strict=True)
    if segments.causal:
        return [length for queries, keys in pairs for length in (keys - queries, queries)]
    return [length for _, keys in pairs for length in (keys, 0)]


def _parts(tensor: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """[tokens, heads, head_dim] as views [1, heads, length, head_dim], one for each length: one call for all of them."""
    return dense(tensor).transpose(0, 1)[None].split(list(lengths), 2)


def _pairs(keys: Iterable[_KeysValues]) -> Iterator[tuple[_KeysValues, _KeysValues]]:
    """The two parts of each segment."""
    each = iter(keys)
    return zip(each, each, strict=True)


def _some(part: _KeysValues) -> bool:
    return part[0].shape[2] > 0


def _span(q: Tensor, k: Tensor, causal: bool) -> Span:
    """All queries against all keys, causal from the upper left corner as cuDNN's; q and k are [tokens, heads, head_dim]."""
    return Span(0, q.shape[0], 0, k.shape[0], 0 if causal else k.shape[0])


def _rows(tensor: Tensor) -> Tensor:
    """[1, heads, tokens, head_dim] as [tokens, heads, head_dim], a view."""
    return tensor[0].transpose(0, 1)
