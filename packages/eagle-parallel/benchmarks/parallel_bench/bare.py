"""The bare kernel call on one GPU, T(1) of every retention: torch's operators on the whole pack, no code of ours around them.

flash is one varlen call for the pack. cudnn, which takes no packs, is one call for each document, on views, as users loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from eagle_parallel.kernels import cudnn, flash
from eagle_parallel.kernels.segments import Segments
from torch import Tensor

KERNELS = ("flash", "cudnn")


def bare_call(kernel: str, tensors: Sequence[Tensor], lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
    """A call that runs forward and backward of a whole pack and gives [out, dq, dk, dv] (cudnn: of each document in turn).

    Args:
        kernel: "flash" or "cudnn".
        tensors: q, k, v and the gradient of out, [tokens, heads, head_dim].
        lengths: tokens of each document.
    """
    return {"flash": _flash, "cudnn": _cudnn}[kernel](tensors, lengths)


def whole(parts: Sequence[Tensor]) -> list[Tensor]:
    """What `bare_call` gave as four tensors of the whole pack, [tokens, heads, head_dim]."""
    return [torch.cat(list(parts[place::4])) for place in range(4)]


def _flash(tensors: Sequence[Tensor], lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
    q, k, v, grad_out = tensors
    segments = Segments.of(lengths, lengths, causal=True, device=q.device)
    borders, longest, scale = segments.cu_queries, max(lengths), q.shape[-1] ** -0.5
    state, unused = (torch.zeros(size, dtype=torch.int64, device=q.device).view(torch.uint64) for size in (2, 0))
    sizes = (borders, borders, longest, longest, 0.0, True)

    def call() -> list[Tensor]:
        out, lse, *_ = flash.aten._flash_attention_forward(q, k, v, *sizes, False, scale=scale)
        return [out, *flash.aten._flash_attention_backward(grad_out, q, k, v, out, lse, *sizes, state, unused, scale=scale)]

    return call


def _cudnn(tensors: Sequence[Tensor], lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
    scale = tensors[0].shape[-1] ** -0.5
    runs = list(pairwise([0, *accumulate(lengths)]))
    documents = [[tensor[start:end].transpose(0, 1)[None] for tensor in tensors] for start, end in runs]
    seed, offset = torch.zeros(2, dtype=torch.int64, device=tensors[0].device).unbind()

    def call() -> list[Tensor]:
        found: list[Tensor] = []
        for q, k, v, grad_out in documents:
            forward = cudnn.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)
            out, lse = forward[0], forward[1]
            grads = cudnn.aten._scaled_dot_product_cudnn_attention_backward(
                grad_out, q, k, v, out, lse, seed, offset, None, None, None, q.shape[2], k.shape[2], 0.0, True, scale=scale
            )
            found += [tensor[0].transpose(0, 1) for tensor in (out, *grads)]
        return found

    return call
