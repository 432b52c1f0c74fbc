"""Peak memory of a whole training step at P = 2, and the vision tower's time per rank, as far as one GPU can tell them.

The step is that of the 28-layer Qwen2.5-7B shape under gradient checkpointing, forward and backward. One rank runs alone: rows of
the other rank are zeros, which weigh what real ones weigh, so memory is that of a rank while losses and gradients mean nothing.
Weights and gradients are subtracted: what is left are activations and workspaces.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from eagle_parallel import Mesh, comm, make_plan
from eagle_parallel import hf as hugging_face
from eagle_parallel.vision_plan import make_vision_plan
from torch import Tensor

from parallel_bench.shared import GIB, Job, StepOptions, build_7b, free_memory
from parallel_bench.turns import in_turns
from parallel_bench.wire import LocalDistributed, LocalGroup

TILES = (16, 32)
_TOWER: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_TINY_TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Silence:
    """A wire on which only zeros arrive."""

    def trade(self, sent: Tensor, sent_rows: Sequence[int], received: Tensor, received_rows: Sequence[int]) -> None:
        received.zero_()

    def shift(self, sent: Tensor, received: Tensor) -> None:
        received.zero_()


@contextmanager
def _silent() -> Iterator[None]:
    module: Any = comm
    real = module.dist
    module.dist = LocalDistributed
    try:
        yield
    finally:
        module.dist = real


def step_memory_rows(tokens: int, device: torch.device, quick: bool, kernel: str) -> Iterator[dict[str, Any]]:
    """One row: peak GiB of rank 0 of 2 over that of one GPU, weights and gradients subtracted; on a CPU it only runs."""
    import eagle_kernels

    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0  # what earlier cases still hold
    model: Any = build_7b(Job("memory_p2", ("eagle",), tokens, 1, device.type, quick, StepOptions()))
    eagle_kernels.apply(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, min(150000, model.config.vocab_size), (1, tokens), device=device)
    peaks = []
    with _silent():
        for ranks in (1, 2):
            plan = make_plan([0, tokens], ranks)
            group = LocalGroup(ranks, 0, Silence())
            groups: Any = {"cp_ring": weakref.ref(group)} if ranks > 1 else {}
            hugging_face.apply(model, Mesh(1, ranks, 1, 0, groups), kernel=kernel)
            index = plan.local_index(0).to(device)
            local, positions = ids[:, index], index[None]
            peaks += [_peak(model, local, positions, plan, device, before) for _ in range(2)][1:]
            del group
    yield {
        "case": "memory_p2_compute",
        "impl": "eagle",
        "shape": {"tokens": tokens, "layers": model.config.num_hidden_layers, "ranks": 2},
        "value": peaks[1] / peaks[0] if peaks[0] else 0.0,
        "unit": "ratio",
        "runs": 1,
        "spread": 0.0,
        "ranks": "one GPU, one rank alone, zeros for the other's rows",
        "kernel": kernel,
        "one_gpu_gib": peaks[0],
        "rank_gib": peaks[1],
    }


def _peak(model: Any, ids: Tensor, positions: Tensor, plan: Any, device: torch.device, before: int) -> float:
    """GiB of one forward and backward pass beyond weights, gradients and the bytes that were there before the model."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    loss = model(input_ids=ids, labels=ids, position_ids=positions, cp_plan=plan, use_cache=False).loss
    loss.backward()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    constant = before + sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) * 2
    return (torch.cuda.max_memory_allocated(device) - constant) / GIB


def vision_rows(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """For packs of tiles the tower's time on the busiest of two ranks over its time on one GPU, forward and backward.

    SigLIP2-So400m's shape, 512 px, patch 16, bfloat16, with eagle-kernels' operators as in training, nothing checkpointed; the
    tiles are dealt by the vision plan. The exchange of feature rows is not in it.
    """
    import eagle_kernels
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    pixels = 32 if quick else 512
    config = SiglipVisionConfig(**(_TINY_TOWER if quick else _TOWER), image_size=pixels, patch_size=16)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        tower: Any = SiglipVisionModel(config)
    torch.set_default_dtype(torch.float32)
    eagle_kernels.apply(tower)
    tower.train()
    for count in (4,) if quick else TILES:
        tiles = torch.randn(count, 3, pixels, pixels, device=device, dtype=torch.bfloat16)
        plan = make_vision_plan([True] * (4 * count), [4] * count, 2)
        calls = {"one": partial(_encode, tower, tiles)}
        calls |= {f"rank {rank}": partial(_encode, tower, tiles[list(plan.own_units(rank))]) for rank in range(2)}
        times = in_turns(calls, device, seconds=4.0)
        ranks = [times[f"rank {rank}"] for rank in range(2)]
        slowest = max(ranks, key=lambda timing: timing.median_ms)
        yield {
            "case": "vision_p2_compute",
            "impl": "eagle",
            "shape": {"tiles": count, "patches": (pixels // 16) ** 2, "ranks": 2},
            "value": slowest.median_ms / times["one"].median_ms,
            "unit": "ratio",
            "runs": slowest.runs,
            "spread": slowest.spread,
            "ranks": "one GPU, compute only",
            "one_gpu_ms": times["one"].median_ms,
            "rank_ms": [timing.median_ms for timing in ranks],
        }
        free_memory(device)


def _encode(tower: Any, tiles: Tensor) -> None:
    """Forward and backward of the tower; gradients are cleared before."""
    for parameter in tower.parameters():
        parameter.grad = None
    tower(pixel_values=tiles).last_hidden_state.float().square().mean().backward()
