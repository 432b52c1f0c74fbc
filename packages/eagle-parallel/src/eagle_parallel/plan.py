"""The plan of a pack: who owns which tokens of which document, in host integers.

Made once per pack from its cu_seqlens; `shard_batch`, `gather` and `cp_attention` all read the same plan. A plan is a value:
frozen, hashable, equal on every rank, without process groups. Index tensors derived from it are kept with it and die with it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from eagle_parallel import layout as layouts
from eagle_parallel.layout import Piece
from eagle_parallel.mesh import Mesh

Layout = Literal["zigzag", "contiguous", "balanced"]
Derived = TypeVar("Derived")

_DEALERS: dict[Layout, Callable[[Sequence[int], int], list[list[Piece]]]] = {
    "zigzag": layouts.zigzag,
    "contiguous": layouts.contiguous,
    "balanced": layouts.balanced,
}


@dataclass(frozen=True)
class ModelShape:
    """What attention needs to know of a model. A plan that carries it makes `cp_attention` check the heads it is given."""

    query_heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("query_heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}.")
        if self.query_heads % self.kv_heads:
            raise ValueError(f"query_heads={self.query_heads} is not a multiple of kv_heads={self.kv_heads} (grouped queries).")


@dataclass(frozen=True)
class Plan:
    """Who owns what. `pieces[cp_rank]` lists that rank's (document, start, end) in pack order; every token is owned once.

    `cu_seqlens` are the document borders of the whole pack, 0 first and the token count last. Ranks are context-parallel
    ranks, 0 to cp - 1, as `Mesh.cp_rank` gives them. `layout` is the one in use, `why` says who chose it and for what reason.
    """

    cu_seqlens: tuple[int, ...]
    cp_ring: int
    cp_ulysses: int
    layout: Layout
    pieces: tuple[tuple[Piece, ...], ...]
    model_shape: ModelShape | None = None
    why: str = field(default="", compare=False)
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def cp(self) -> int:
        return self.cp_ring * self.cp_ulysses

    @property
    def tokens(self) -> int:
        """Tokens of the whole pack."""
        return self.cu_seqlens[-1]

    def local_tokens(self, rank: int) -> int:
        """Tokens that a rank owns."""
        pieces = self.pieces[self._checked(rank)]
        return self.derived(("local_tokens", rank), lambda: sum(end - start for _, start, end in pieces))

    def local_index(self, rank: int) -> Tensor:
        """Pack positions of a rank's tokens in the order in which it holds them: int64 [local_tokens] on the CPU, ascending."""
        runs = [
            torch.arange(self.cu_seqlens[document] + start, self.cu_seqlens[document] + end)
            for document, start, end in self.pieces[self._checked(rank)]
        ]
        return torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64)

    def causal_work(self, rank: int) -> int:
        """Pairs (query, key) that causal attention visits for a rank's queries."""
        return sum((end * (end + 1) - start * (start + 1)) // 2 for _, start, end in self.pieces[self._checked(rank)])

    def ring_pieces(self, ring_rank: int) -> tuple[Piece, ...]:
        """What the Ulysses ranks of a ring rank own together, in the order in which their tokens lie after the head exchange."""
        first = ring_rank * self.cp_ulysses
        return tuple(layouts.joined(piece for pieces in self.pieces[first : first + self.cp_ulysses] for piece in pieces))

    def derived(self, key: Hashable, build: Callable[[], Derived]) -> Derived:
        """What `build` makes of this plan, made once for each key and kept with the plan: index tensors on a device."""
        if key not in self._derived:
            self._derived[key] = build()
        return self._derived[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.cp:
            raise ValueError(f"rank {rank} is not a context-parallel rank of this plan (0 to {self.cp - 1}); pass mesh.cp_rank.")
        return rank


def make_plan(
    cu_seqlens: Sequence[int] | Tensor,
    mesh: Mesh | int | tuple[int, int],
    model_shape: ModelShape | None = None,
    layout: Layout | Literal["auto"] = "auto",
) -> Plan:
    """Decide who owns which tokens of a pack. Any document length, no padding, no divisibility rule.

    With zigzag and cp_ulysses = 1, tokens per rank differ by at most one, and each rank's causal work differs from the mean by
    at most two pairs for each token of the pack (that is, by a share that vanishes as documents grow). With cp_ulysses > 1 each
    ring share is cut into consecutive runs, which attend together after the head exchange.

    Args:
        cu_seqlens: document borders, [documents + 1] integers on the host, 0 first, not decreasing (equal neighbours are an
            empty document). A tensor on an accelerator is refused: reading it would wait for the device.
        mesh: a Mesh, or the number of context-parallel ranks, or the pair (cp_ring, cp_ulysses).
        model_shape: checked against the tensors given to `cp_attention`, where present.
        layout: "auto" (the cost model of `eagle_parallel.planner` chooses from the lengths; `plan.why` says what and why),
            "zigzag" (every document over all ring ranks), "balanced" (documents whole on one ring rank wherever that keeps work
            within about 1 % of the mean, a few long ones zigzagged; where none is cut, tokens are within 1 % as well), or
            "contiguous" (the baseline: one run of the pack each).

    Returns:
        The plan, equal on every rank that passes equal arguments.

    Raises:
        ValueError: cu_seqlens, mesh or layout is not as described.
        TypeError: cu_seqlens or mesh has another type.
    """
    borders = _borders(cu_seqlens)
    ring, ulysses = _sizes(mesh)
    if layout != "auto" and layout not in _DEALERS:
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(get_args(Layout))}, auto.")
    lengths = [after - before for before, after in pairwise(borders)]
    chosen, why = _choose(lengths, ring, ulysses, model_shape) if layout == "auto" else (layout, "asked for")
    shares = _DEALERS[chosen](lengths, ring)
    pieces = tuple(tuple(part) for share in shares for part in layouts.split(share, ulysses))
    return Plan(borders, ring, ulysses, chosen, pieces, model_shape, why)


def explain(plan: Plan) -> str:
    """What a plan does and why, in a few lines for people: layout and its reason, shares, causal work, documents kept whole."""
    tokens = [plan.local_tokens(rank) for rank in range(plan.cp)]
    # After the head exchange the Ulysses ranks of a ring rank attend to the same tokens, each with its own heads.
    work = [sum(map(plan.causal_work, range(first, first + plan.cp_ulysses))) for first in range(0, plan.cp, plan.cp_ulysses)]
    mean = sum(work) / len(work)
    lengths = [after - before for before, after in pairwise(plan.cu_seqlens)]
    parts = [0] * len(lengths)
    for ring_rank in range(plan.cp_ring):
        for document in {piece.document for piece in plan.ring_pieces(ring_rank)}:
            parts[document] += 1
    whole = sum(part == 1 for part in parts)
    return (
        f"layout {plan.layout}: {plan.why or 'no reason recorded'}\n"
        f"{plan.tokens} tokens of {sum(map(bool, lengths))} documents over {plan.cp} ranks "
        f"(cp_ring={plan.cp_ring}, cp_ulysses={plan.cp_ulysses}): {min(tokens)} to {max(tokens)} tokens each\n"
        f"causal work of the busiest ring rank: {max(work) / mean if mean else 1.0:.4f} of the mean\n"
        f"{whole} documents are whole on one ring rank and send no keys; the longest has {max(lengths)} tokens"
    )


def _choose(lengths: list[int], ring: int, ulysses: int, model_shape: ModelShape | None) -> tuple[Layout, str]:
    try:
        from eagle_parallel.planner import choose_layout  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return "zigzag", f"the cost model cannot be imported ({error}); zigzag is right for every pack"
    return choose_layout(lengths, ring, ulysses, model_shape)


def _borders(cu_seqlens: Sequence[int] | Tensor) -> tuple[int, ...]:
    if isinstance(cu_seqlens, Tensor):
        if cu_seqlens.device.type != "cpu":
            raise ValueError(
                f"cu_seqlens is on {cu_seqlens.device}; pass the host copy, reading this one would wait for the device."
            )
        if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point():
            raise ValueError(
                f"cu_seqlens must be a one-dimensional integer tensor, got {cu_seqlens.dtype} {list(cu_seqlens.shape)}."
            )
        cu_seqlens = cu_seqlens.tolist()
    borders = tuple(int(border) for border in cu_seqlens)
    if len(borders) < 2 or borders[0] != 0:
        raise ValueError(f"cu_seqlens must be 0 followed by the end of every document, got {list(borders[:8])}.")
    for place, (before, after) in enumerate(pairwise(borders)):
        if after < before:
            raise ValueError(f"cu_seqlens decreases from {before} to {after} at entry {place + 1}; pass cumulative lengths.")
    return borders


def _sizes(mesh: Mesh | int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(mesh, Mesh):
        return mesh.cp_ring, mesh.cp_ulysses
    sizes = (mesh, 1) if isinstance(mesh, int) else mesh
    if not isinstance(sizes, tuple) or len(sizes) != 2 or not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"mesh must be a Mesh, a number of ranks or (cp_ring, cp_ulysses), got {mesh!r}.")
    if min(sizes) < 1:
        raise ValueError(f"mesh sizes must be positive, got {mesh!r}.")
    return sizes
