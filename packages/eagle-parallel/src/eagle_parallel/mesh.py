"""The process mesh: axes dp, cp_ring, cp_ulysses (innermost), as plain integers with process groups attached.

Ranks of one context-parallel group are consecutive and share one pack; ranks with equal position in their groups are
data-parallel peers (upstream sections 6.1 and A.6). The arithmetic is pure; only init_mesh talks to torch.distributed.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch.distributed as dist

Axis = Literal["dp", "cp_ring", "cp_ulysses", "cp", "dp_cp"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Mesh:
    """Sizes of the three axes and the place of this process in them. Build it with `init_mesh`.

    rank = (dp_rank * cp_ring + ring_rank) * cp_ulysses + ulysses_rank. The axis "cp" is cp_ring and cp_ulysses flattened,
    "dp_cp" is every rank.
    """

    dp: int
    cp_ring: int
    cp_ulysses: int
    rank: int
    # Weak: torch.distributed owns the groups, and a gloo group that a value keeps alive until the interpreter ends aborts it.
    _groups: Mapping[Axis, weakref.ref[dist.ProcessGroup]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def world(self) -> int:
        return self.dp * self.cp

    @property
    def cp(self) -> int:
        return self.cp_ring * self.cp_ulysses

    @property
    def dp_rank(self) -> int:
        return self.rank // self.cp

    @property
    def cp_rank(self) -> int:
        """This process's place in its context-parallel group: the rank that plans and `shard_batch` speak of."""
        return self.rank % self.cp

    @property
    def ring_rank(self) -> int:
        return self.cp_rank // self.cp_ulysses

    @property
    def ulysses_rank(self) -> int:
        return self.rank % self.cp_ulysses

    def ranks(self, axis: Axis) -> tuple[tuple[int, ...], ...]:
        """Every group of an axis as global ranks: with 8 ranks, cp 8, ulysses 4, "cp_ring" is (0,4), (1,5), (2,6), (3,7).

        Raises:
            ValueError: axis is not one of dp, cp_ring, cp_ulysses, cp, dp_cp.
        """
        step, size = {
            "cp_ulysses": (1, self.cp_ulysses),
            "cp_ring": (self.cp_ulysses, self.cp_ring),
            "cp": (1, self.cp),
            "dp": (self.cp, self.dp),
            "dp_cp": (1, self.world),
        }.get(axis, (0, 0))
        if not size:
            raise ValueError(f"axis {axis!r} is not an axis of the mesh; use one of {', '.join(AXES)}.")
        firsts = [rank for rank in range(self.world) if (rank // step) % size == 0]
        return tuple(tuple(first + step * place for place in range(size)) for first in firsts)

    def size(self, axis: Axis) -> int:
        """Number of ranks in one group of an axis."""
        return len(self.ranks(axis)[0])

    def group(self, axis: Axis) -> dist.ProcessGroup | None:
        """The process group of this rank along an axis; None where it would hold this rank alone.

        Raises:
            ValueError: the mesh was not built by `init_mesh`, or torch.distributed was shut down since.
        """
        if self.size(axis) == 1:
            return None
        group = self._groups[axis]() if axis in self._groups else None
        if group is None:
            raise ValueError(f"this mesh has no live process group for axis {axis!r}; build it with eagle_parallel.init_mesh().")
        return group


def init_mesh(cp: int = 1, ulysses: int = 1) -> Mesh:
    """The mesh of all processes of torch.distributed, or of this one process where that is not initialised.

    Collective: every rank calls it once, with the same arguments, after `torch.distributed.init_process_group`. End each process
    with `torch.distributed.destroy_process_group()`: a gloo process that ends without it aborts now and then (torch 2.13).

    Args:
        cp: ranks that share one pack (context parallelism in all); divides the world size.
        ulysses: how many of them exchange heads, innermost; divides cp. The other factor, cp / ulysses, gathers keys.

    Returns:
        The mesh, with dp = world / cp.

    Raises:
        ValueError: a size is not a positive integer or does not divide.
    """
    distributed = dist.is_available() and dist.is_initialized()
    world, rank = (dist.get_world_size(), dist.get_rank()) if distributed else (1, 0)
    sizes = mesh_sizes(world, cp, ulysses)
    bare = Mesh(*sizes, rank=rank)
    made: dict[tuple[int, ...], weakref.ref[dist.ProcessGroup]] = {}
    # new_group is collective over the world: every rank creates every group, in this order.
    for ranks in dict.fromkeys(ranks for axis in AXES for ranks in bare.ranks(axis) if len(ranks) > 1):
        group = dist.group.WORLD if len(ranks) == world else dist.new_group(list(ranks))
        if rank in ranks and isinstance(group, dist.ProcessGroup):
            made[ranks] = weakref.ref(group)
    groups: list[tuple[Axis, weakref.ref[dist.ProcessGroup]]]
    groups = [(axis, made[ranks]) for axis in AXES for ranks in bare.ranks(axis) if ranks in made]
    return Mesh(*sizes, rank=rank, _groups=dict(groups))


def mesh_sizes(world: int, cp: int, ulysses: int) -> tuple[int, int, int]:
    """(dp, cp_ring, cp_ulysses) for a world size; ValueError, with the sizes that would fit, where they do not divide."""
    for name, size in (("world", world), ("cp", cp), ("ulysses", ulysses)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}.")
    if world % cp:
        fits = ", ".join(str(size) for size in range(1, world + 1) if world % size == 0)
        raise ValueError(
            f"cp={cp} does not divide the {world} running processes; use cp in {{{fits}}} or start a multiple of {cp}."
        )
    if cp % ulysses:
        fits = ", ".join(str(size) for size in range(1, cp + 1) if cp % size == 0)
        raise ValueError(f"ulysses={ulysses} does not divide cp={cp}; use ulysses in {{{fits}}}.")
    return world // cp, cp // ulysses, ulysses
