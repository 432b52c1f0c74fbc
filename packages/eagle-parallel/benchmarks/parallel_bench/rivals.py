"""Other implementations of attention over ranks, as calls on the inputs of a case: what `pair.py` times beside ours.

Each entry takes a pack and its whole tensors and gives a call that runs forward and backward of this rank's part, or raises
NotOfferedError with the reason: not installed, or not able to take the pack. All share flash-attn's interface, so that the kernel
is the same for every contender. Adapters follow the projects' public signatures and have not been run yet; yunchang, torch's
context_parallel and DeepSpeed's Ulysses attention have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_bench.packs import Pack

Call = Callable[[], list[Tensor]]


class NotOfferedError(Exception):
    """This rival is not installed, or does not take this pack."""


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise NotOfferedError(f"cannot be imported: {error}") from error


def _no_adapter(package: str) -> Callable[[Pack, Sequence[Tensor]], Call]:
    def make(pack: Pack, tensors: Sequence[Tensor]) -> Call:
        raise NotOfferedError(f"no adapter for {package} is written yet")

    return make


def _llama3(pack: Pack, tensors: Sequence[Tensor]) -> Call:
    """ring-flash-attn's gather of contiguous shares, one KV head at a time."""
    package = _module("ring_flash_attn")
    rank, world = dist.get_rank(), dist.get_world_size()
    if pack.tokens % world:
        raise NotOfferedError(f"takes packs whose tokens divide by {world}")
    share = pack.tokens // world
    mine = slice(rank * share, (rank + 1) * share)
    borders = torch.tensor(pack.borders, dtype=torch.int32, device=tensors[0].device)
    cu_q, cu_k, max_q, max_k, keys = package.llama3_flash_attn_prepare_cu_seqlens(borders, True, rank, world)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return package.llama3_flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, heads_k_stride=1, local_k_slice=keys, causal=True
        )

    return _call(attend, [tensor[mine].clone() for tensor in tensors])


def _zigzag(pack: Pack, tensors: Sequence[Tensor]) -> Call:
    """ring-flash-attn's zigzag ring; every document must divide by twice the ranks."""
    package = _module("ring_flash_attn")
    rank, world = dist.get_rank(), dist.get_world_size()
    if any(length % (2 * world) for length in pack.lengths):
        raise NotOfferedError(f"takes documents whose lengths divide by {2 * world}")
    rows = []
    for start, length in zip(pack.borders, pack.lengths, strict=False):
        chunk = length // (2 * world)
        for place in (rank, 2 * world - 1 - rank):
            rows.append(torch.arange(start + place * chunk, start + (place + 1) * chunk))
    index = torch.cat(rows).to(tensors[0].device)
    borders = torch.tensor(pack.borders, dtype=torch.int32, device=tensors[0].device) // world
    longest = max(pack.lengths) // world

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return package.zigzag_ring_flash_attn_varlen_func(q, k, v, borders, longest, causal=True)

    return _call(attend, [tensor.index_select(0, index) for tensor in tensors])


def _call(attend: Callable[[Tensor, Tensor, Tensor], Tensor], local: Sequence[Tensor]) -> Call:
    q, k, v = (tensor.requires_grad_() for tensor in local[:3])

    def call() -> list[Tensor]:
        out = attend(q, k, v)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), local[3])]

    return call


RIVALS: Mapping[str, Callable[[Pack, Sequence[Tensor]], Call]] = {
    "ring-flash-attn-llama3": _llama3,
    "ring-flash-attn-zigzag": _zigzag,
    "yunchang": _no_adapter("yunchang"),
    "torch-context-parallel": _no_adapter("torch's context_parallel"),
    "deepspeed-ulysses": _no_adapter("DeepSpeed's Ulysses attention"),
}
