"""What is asked of the planner, and one point of the search space: two values that every prediction takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagle_parallel.planner.attention import Algorithm
from eagle_parallel.planner.hardware import FLASH, Cluster, Kernel
from eagle_parallel.planner.load import LayoutName
from eagle_parallel.planner.model import TransformerShape


@dataclass(frozen=True)
class Run:
    """A training run: every data-parallel group trains one pack of `lengths` in a step; bf16 weights, AdamW in fp32.

    zero_stage: what the ranks of dp and cp together share out: 0 nothing, 1 optimiser, 2 gradients, 3 weights.
    checkpointing: layers keep only their inputs. offload_inputs: in host memory. keep_attention: also out and lse.
    mlp_tile_tokens: the MLP runs in tiles of so many tokens; None is all at once.
    tiles: vision tiles of a pack, shared evenly by the ranks.
    batch_tokens: at most so many tokens of all packs in a step; None is no limit.
    optimiser: whether AdamW runs and has its state (False: forward and backward alone).
    gradients_resident: gradients of the whole model exist before backward begins (DeepSpeed's buckets, accumulation).
    """

    model: TransformerShape
    lengths: tuple[int, ...]
    gpus: int
    cluster: Cluster = field(default_factory=Cluster)
    kernel: Kernel = FLASH
    zero_stage: int = 3
    checkpointing: bool = True
    offload_inputs: bool = False
    keep_attention: bool = False
    mlp_tile_tokens: int | None = None
    tiles: int = 0
    batch_tokens: int | None = None
    optimiser: bool = True
    gradients_resident: bool = True

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus must be a positive integer, got {self.gpus!r}.")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("lengths must hold one positive token count for each document.")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage!r}.")
        if self.mlp_tile_tokens is not None and self.mlp_tile_tokens < 1:
            raise ValueError(f"mlp_tile_tokens must be a positive integer or None, got {self.mlp_tile_tokens!r}.")
        if self.tiles < 0:
            raise ValueError(f"tiles must not be negative, got {self.tiles!r}.")
        if self.batch_tokens is not None and self.batch_tokens < self.context:
            raise ValueError(f"batch_tokens={self.batch_tokens} is less than one pack of {self.context} tokens; raise it.")
        if self.offload_inputs and not self.checkpointing:
            raise ValueError("offload_inputs needs checkpointing: without it layers keep more than their inputs.")

    @property
    def context(self) -> int:
        """Tokens of a pack."""
        return sum(self.lengths)

    @property
    def causal_pairs(self) -> int:
        """(query, key) pairs of one head that a pack needs."""
        return sum(length * (length + 1) // 2 for length in self.lengths)


@dataclass(frozen=True)
class Choice:
    """One way to lay a run out: sizes of the axes, layout of the pack, algorithm over the ring axis."""

    dp: int
    cp_ring: int
    cp_ulysses: int
    layout: LayoutName
    algorithm: Algorithm

    @property
    def cp(self) -> int:
        return self.cp_ring * self.cp_ulysses
