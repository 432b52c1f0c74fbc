"""torch's GPU attention operators by their contracts, in plain PyTorch on the CPU: a rehearsal of everything without a GPU.

While `emulated_kernels` is active, the kernels "flash" and "cudnn" run on the CPU through the same calls of the same operators.
They round where FlashAttention-2 rounds: probabilities and their gradients before a matrix product, and dK and dV of each query
head before those of a group are summed. For `--device cpu` and tests only; its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from eagle_parallel import Span
from eagle_parallel.kernels import cudnn, flash
from torch import Tensor


@contextmanager
def emulated_kernels() -> Iterator[None]:
    """Let flash and cudnn run on the CPU."""
    flash_module: Any = flash
    cudnn_module: Any = cudnn
    before = [(module, module.aten, module.why_not) for module in (flash_module, cudnn_module)]
    from eagle_parallel.kernels import base

    table: Any = base._KERNELS
    entries = dict(table)
    operators = SimpleNamespace(
        _flash_attention_forward=_flash_forward,
        _flash_attention_backward=_flash_backward,
        _scaled_dot_product_cudnn_attention=_cudnn_forward,
        _scaled_dot_product_cudnn_attention_backward=_cudnn_backward,
    )
    for module, _, _ in before:
        module.aten = operators
        module.why_not = lambda _device: None
    for name in ("flash", "cudnn"):
        table[name] = (lambda _device: None, entries[name][1])
    try:
        yield
    finally:
        for module, aten, why_not in before:
            module.aten, module.why_not = aten, why_not
        table.update(entries)


def _spans(cu_q: Tensor, cu_k: Tensor, causal: bool) -> list[Span]:
    spans = []
    for place in range(len(cu_q) - 1):
        (start, end), (first, last) = cu_q[place : place + 2].tolist(), cu_k[place : place + 2].tolist()
        spans.append(Span(start, end, first, last, (last - first) - (end - start) if causal else last - first))
    return spans


def _flash_forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale) -> tuple:
    _check(cu_q.dtype == cu_k.dtype == torch.int32, "cu_seqlens must be int32")
    _check((max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max())), "max_seqlen must be the longest run")
    _check(all(tensor.stride(-1) == 1 for tensor in (q, k, v)), "the last dimension must be dense")
    state, empty = torch.zeros(2, dtype=torch.uint64), torch.zeros(0)
    return *_attend(q, k, v, _spans(cu_q, cu_k, causal), scale), state, empty, empty


def _flash_backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, state, unused, *, scale) -> tuple:
    _check(state.dtype == unused.dtype == torch.uint64, "the random state must be uint64")
    _check(lse.is_contiguous(), "lse must be contiguous")
    return _attend_backward(grad, q, k, v, out, lse, _spans(cu_q, cu_k, causal), scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)
    for rows, keys, scores in _scores(q, k, spans, scale):
        top = scores.amax(-1, keepdim=True)
        chance = (scores - top).exp()
        product = chance.to(q.dtype).float() @ v[keys].repeat_interleave(group, dim=1).transpose(0, 1).float()
        out[rows] = (product / chance.sum(-1, keepdim=True)).transpose(0, 1).to(q.dtype)
        lse[:, rows] = scores.logsumexp(-1)
    return out, lse


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, spans: Sequence[Span], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    group, dtype = q.shape[1] // k.shape[1], q.dtype
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (grad.float() * out.float()).sum(-1).T
    for rows, keys, scores in _scores(q, k, spans, scale):
        chance = (scores - lse[:, rows, None]).exp()
        wide_k, wide_v = (tensor[keys].repeat_interleave(group, dim=1).transpose(0, 1).float() for tensor in (k, v))
        wide_q, wide_grad = (tensor[rows].transpose(0, 1).float() for tensor in (q, grad))
        slope = (chance * (wide_grad @ wide_v.mT - delta[:, rows, None])).to(dtype).float()
        dq[rows] = (slope @ wide_k * scale).transpose(0, 1).to(dtype)
        for place, each in ((dk, slope.mT @ wide_q * scale), (dv, chance.to(dtype).float().mT @ wide_grad)):
            place[keys] = each.to(dtype).unflatten(0, (-1, group)).sum(1).transpose(0, 1)
    return dq, dk, dv


def _scores(q: Tensor, k: Tensor, spans: Sequence[Span], scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each span its query rows, key rows and scores [query_heads, queries, keys] in float32, -inf where nothing is seen."""
    group = q.shape[1] // k.shape[1]
    for start, end, first, last, position in spans:
        rows, keys = slice(start, end), slice(first, last)
        scores = q[rows].transpose(0, 1).float() @ k[keys].repeat_interleave(group, dim=1).permute(1, 2, 0).float() * scale
        hidden = torch.arange(last - first) > torch.arange(position, position + end - start)[:, None]
        yield rows, keys, scores.masked_fill(hidden, float("-inf"))


def _cudnn_forward(q, k, v, bias, want_lse, dropout, causal, debug, *, scale) -> tuple:
    _check(min(q.shape[2], k.shape[2]) > 1, "one query or one key")
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _attend(q, k, v, [_square(q, k, causal)], scale)
    return out.transpose(0, 1)[None], lse[None, :, :, None], None, None, q.shape[0], k.shape[0], None, None, None


def _cudnn_backward(grad, q, k, v, out, lse, seed, offset, bias, cu_q, cu_k, max_q, max_k, dropout, causal, *, scale) -> tuple:
    _check(cu_q is None and cu_k is None and bias is None, "borders that are given mean packed sequences")
    _check((max_q, max_k) == (q.shape[2], k.shape[2]) and lse.shape[-1] == 1, "sizes")
    q, k, v = _rows(q), _rows(k), _rows(v)
    grads = _attend_backward(_rows(grad), q, k, v, _rows(out), lse[0, :, :, 0], [_square(q, k, causal)], scale)
    return tuple(part.transpose(0, 1)[None] for part in grads)


def _rows(tensor: Tensor) -> Tensor:
    _check(tensor.shape[0] == 1 and tensor.stride(-1) == 1, "expected [1, heads, tokens, head_dim], the last dimension dense")
    return tensor[0].transpose(0, 1)


def _square(q: Tensor, k: Tensor, causal: bool) -> Span:
    return Span(0, q.shape[0], 0, k.shape[0], 0 if causal else k.shape[0])


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"emulated operator: {what}.")
