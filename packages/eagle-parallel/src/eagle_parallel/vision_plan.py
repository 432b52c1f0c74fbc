"""Who encodes which tile or frame of a pack, and which tokens its features fill: host integers and nothing else.

Units are tiles or frames, not whole pictures, so that one long video is shared by all ranks. They are dealt by cost, in
consecutive runs wherever that is no slower, which keeps the decoding of a video on few ranks. Only the owner of a unit needs its
pixels. Moving features to the ranks that own the tokens is `vision.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from eagle_parallel.mesh import Mesh


@dataclass(frozen=True)
class VisionPlan:
    """The units of one pack: what each costs, how many tokens it fills, who encodes it. Build it with `make_vision_plan`.

    Units are in pack order; unit u fills the next `unit_tokens[u]` placeholder tokens. `runs` are the placeholders as ranges
    [start, end) of pack positions, ascending. `owners[u]` is a context-parallel rank, 0 to cp - 1.
    """

    runs: tuple[tuple[int, int], ...]
    unit_tokens: tuple[int, ...]
    costs: tuple[int, ...]
    owners: tuple[int, ...]
    cp: int

    @property
    def units(self) -> int:
        return len(self.owners)

    @property
    def tokens(self) -> int:
        """Placeholder tokens of the whole pack."""
        return sum(self.unit_tokens)

    @property
    def imbalance(self) -> float:
        """Cost of the busiest rank over the mean; 1 is perfect, also where there is nothing to encode."""
        total = sum(self.costs)
        return max(_loads(self.costs, self.owners, self.cp)) * self.cp / total if total else 1.0

    def owner(self, unit: int) -> int:
        """The rank that loads and encodes a unit."""
        if not 0 <= unit < self.units:
            raise IndexError(f"unit {unit} is not one of this pack's {self.units} units.")
        return self.owners[unit]

    def loads(self, unit: int, rank: int) -> bool:
        """Whether a rank needs a unit's pixels: the predicate for a loader, which may leave all other pixels undecoded."""
        return self.owner(unit) == self._checked(rank)

    def own_units(self, rank: int) -> tuple[int, ...]:
        """The units of a rank, ascending; may be none."""
        self._checked(rank)
        return tuple(unit for unit, owner in enumerate(self.owners) if owner == rank)

    def own_tokens(self, rank: int) -> int:
        """Feature rows that a rank computes."""
        return sum(self.unit_tokens[unit] for unit in self.own_units(rank))

    def positions(self) -> Tensor:
        """Pack position of every feature row, in unit order: int64 [tokens] on the CPU, ascending."""
        return torch.cat([torch.arange(start, end) for start, end in self.runs] or [torch.zeros(0, dtype=torch.int64)])

    def encoders(self) -> Tensor:
        """Rank that computes each feature row, in unit order: int64 [tokens] on the CPU."""
        owners, counts = torch.tensor(self.owners, dtype=torch.int64), torch.tensor(self.unit_tokens, dtype=torch.int64)
        return owners.repeat_interleave(counts)

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.cp:
            raise ValueError(f"rank {rank} is not a context-parallel rank of this plan (0 to {self.cp - 1}); pass mesh.cp_rank.")
        return rank


def make_vision_plan(
    placeholders: Tensor | Sequence[bool],
    unit_tokens: Sequence[int],
    mesh: Mesh | int,
    *,
    costs: Sequence[int] | None = None,
    owners: Sequence[int] | None = None,
) -> VisionPlan:
    """Deal the tiles or frames of a pack to the context-parallel ranks so that the busiest one has the least to do.

    The busiest rank's cost exceeds the mean by less than the dearest unit's; with n equal units a rank it is at most 1 + 1/n
    of the mean. Where equally good, every rank gets one run of consecutive units.

    Args:
        placeholders: bool [tokens] or [1, tokens] of the whole pack, on the host: True where a visual feature replaces the
            token's embedding, as in `input_ids == image_token`.
        unit_tokens: for every tile or frame, in pack order, how many of these tokens it fills.
        mesh: a Mesh, or the number of context-parallel ranks.
        costs: for every unit a non-negative integer proportional to the time it takes to encode, e.g. `tower_cost`; by default
            its number of tokens.
        owners: for every unit the rank that has its pixels already, instead of dealing them: those of an earlier plan after
            some samples were dropped from the pack.

    Returns:
        The plan, equal on every rank that passes equal arguments.

    Raises:
        ValueError: the counts do not fit, as when a pack was cut through an image, or a number is out of range.
    """
    ranks = mesh.cp if isinstance(mesh, Mesh) else mesh
    if not isinstance(ranks, int) or ranks < 1:
        raise ValueError(f"mesh must be a Mesh or a positive number of ranks, got {mesh!r}.")
    filled = tuple(int(count) for count in unit_tokens)
    work = filled if costs is None else tuple(int(cost) for cost in costs)
    if len(work) != len(filled):
        raise ValueError(f"costs has {len(work)} entries but unit_tokens has {len(filled)}; give one for each unit.")
    for name, numbers in (("unit_tokens", filled), ("costs", work)):
        if min(numbers, default=0) < 0:
            raise ValueError(f"{name} holds {min(numbers)}; numbers must not be negative.")
    runs = _runs(placeholders)
    room = sum(end - start for start, end in runs)
    if room != sum(filled):
        raise ValueError(
            f"the pack has {room} placeholder tokens but its {len(filled)} units fill {sum(filled)}; make both from the same "
            f"samples, of the whole pack and before shard_batch."
        )
    if owners is None:
        return VisionPlan(runs, filled, work, _deal(work, ranks), ranks)
    if len(owners) != len(filled) or not all(0 <= owner < ranks for owner in owners):
        raise ValueError(
            f"owners must give each of the {len(filled)} units a rank from 0 to {ranks - 1}, got {len(owners)} entries "
            f"from {min(owners, default=0)} to {max(owners, default=0)}."
        )
    return VisionPlan(runs, filled, work, tuple(owners), ranks)


def tower_cost(patches: int, hidden: int) -> int:
    """Relative cost of encoding a unit in a transformer tower of width `hidden`: attention within the unit plus linear layers.

    A layer with a four times wider MLP does 24 p d^2 operations in its linear layers and 4 p^2 d in attention.
    """
    return patches * (patches + 6 * hidden)


def _runs(placeholders: Tensor | Sequence[bool]) -> tuple[tuple[int, int], ...]:
    mask = torch.as_tensor(placeholders, dtype=None if isinstance(placeholders, Tensor) else torch.bool)
    if mask.device.type != "cpu":
        raise ValueError(f"placeholders is on {mask.device}; pass the host copy, reading this one would wait for the device.")
    if mask.dtype != torch.bool or mask.dim() not in (1, 2) or (mask.dim() == 2 and mask.shape[0] != 1):
        raise ValueError(f"placeholders must be bool [tokens] or [1, tokens], got {mask.dtype} {list(mask.shape)}.")
    steps = torch.nn.functional.pad(mask.reshape(-1).to(torch.int8), (1, 1)).diff()
    starts, ends = ((steps == sign).nonzero().flatten().tolist() for sign in (1, -1))
    return tuple(zip(starts, ends, strict=True))


def _deal(costs: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Owner of every unit: the best consecutive runs, unless giving the dearest units first to the idlest rank does better."""
    runs = _consecutive(costs, ranks)
    loose = _dearest_first(costs, ranks)
    return runs if max(_loads(costs, runs, ranks)) <= max(_loads(costs, loose, ranks)) else loose


def _consecutive(costs: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Runs of consecutive units whose dearest run is as cheap as runs allow; as even as that permits."""
    low, high = max(costs, default=0), sum(costs)
    while low < high:
        limit = (low + high) // 2
        if max(_filled(costs, limit), default=0) < ranks:
            high = limit
        else:
            low = limit + 1
    # Cutting at equal shares of the total leaves no rank idle needlessly, as filling rank after rank would.
    shares = _shared(costs, ranks)
    return shares if max(_loads(costs, shares, ranks)) <= low else _filled(costs, low)


def _filled(costs: Sequence[int], limit: int) -> tuple[int, ...]:
    """Fill one rank after the other up to `limit`."""
    owners, rank, load = [], 0, 0
    for cost in costs:
        if load + cost > limit:
            rank, load = rank + 1, 0
        load += cost
        owners.append(rank)
    return tuple(owners)


def _shared(costs: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Each unit to the rank in whose equal share of the total cost the unit's middle lies."""
    total = sum(costs)
    if not total:
        return tuple(unit * ranks // len(costs) for unit in range(len(costs)))
    middles = ((before + after) for before, after in pairwise(accumulate(costs, initial=0)))
    return tuple(min(ranks - 1, middle * ranks // (2 * total)) for middle in middles)


def _dearest_first(costs: Sequence[int], ranks: int) -> tuple[int, ...]:
    owners, loads = [0] * len(costs), [0] * ranks
    for unit in sorted(range(len(costs)), key=lambda unit: (-costs[unit], unit)):
        owners[unit] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owners[unit]] += costs[unit]
    return tuple(owners)


def _loads(costs: Sequence[int], owners: Sequence[int], ranks: int) -> list[int]:
    loads = [0] * ranks
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return loads
