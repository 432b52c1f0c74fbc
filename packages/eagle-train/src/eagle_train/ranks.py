"""This process among the ranks of a run: join the others, let the first work alone, tell what it decided, add figures up.

A run of one process has one rank, and nothing here communicates for it. Starting ranks is `eagle_train.launch`, or torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from eagle_parallel import Mesh

from eagle_train.errors import RecipeError
from eagle_train.recipe import Recipe

Value = TypeVar("Value")

_STEP = timedelta(minutes=30)
"""How long a rank waits for another within training, a checkpoint included."""
_PREPARATION = timedelta(days=7)
"""How long the ranks wait while the first prepares the data."""


def device_of(recipe: Recipe) -> torch.device:
    """The device of this rank. Raises RecipeError where the machine has fewer CUDA devices than ranks."""
    kind = recipe.engine.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu" or recipe.parallel.cp == 1:
        return torch.device(kind)
    here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if devices < here:
        raise RecipeError(
            f"parallel.cp: {here} ranks on this machine need as many CUDA devices, but there are {devices}; "
            "use a smaller parallel.cp, or engine.device=cpu"
        )
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))


def join(device: torch.device, store: str, *, rank: int, world: int) -> None:
    """Enter the process group of a run's ranks, which meet at the URL `store`. End with `destroy_process_group`."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world, timeout=_STEP)


class Ranks:
    """The ranks of a run, seen from one of them; `first` is the one that writes and reports."""

    def __init__(self, first: bool, group: dist.ProcessGroup | None):
        self.first = first
        self.alone = group is None
        self._group = group

    def agree(self, value: Value) -> Value:
        """The first rank's value, on every rank. All ranks call it; the others may wait for days."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block runs on the first rank and only then, when its results are there to be found, on the others."""
        if not self.first:
            self.agree(None)
        yield
        if self.first:
            self.agree(None)


@contextmanager
def all_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this run, which are joined for the block where torchrun started them and nobody has joined them yet."""
    world = int(os.environ.get("WORLD_SIZE") or 1)
    if world == 1:
        yield Ranks(True, None)
        return
    joining = not dist.is_initialized()
    if joining:
        join(device, "env://", rank=int(os.environ["RANK"]), world=world)
    try:
        # On the host whatever the device, and patient: the first rank may prepare data for days.
        group = dist.new_group(backend="gloo", timeout=_PREPARATION)
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        yield Ranks(dist.get_rank() == 0, group)
    finally:
        if joining:
            dist.destroy_process_group()


def sums(values: Sequence[float], mesh: Mesh) -> list[float]:
    """Each value summed over all ranks, in float64 and equal on every rank. All ranks call it."""
    group = mesh.group("dp_cp")
    if group is None:
        return list(values)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=group)
    return total.tolist()


__all__ = ["Ranks", "all_ranks", "device_of", "join", "sums"]
