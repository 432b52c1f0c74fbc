"""The packs and heads that are measured: the cases of the issue by name, and tiny ones that only prove that everything runs.

Lengths are tokens of each document of one pack. Everything is fixed by the name (and a seed), so two machines measure the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from eagle_parallel import ModelShape

QWEN = ModelShape(28, 4, 128)
TINY = ModelShape(14, 2, 16)
VIDEO = (30011, 17389, 9127, 5003, 2411, 1021, 389, 185)
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Pack:
    """One pack of a case. `seed` is set where lengths are drawn."""

    case: str
    lengths: tuple[int, ...]
    heads: ModelShape
    seed: int | None = None

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def borders(self) -> list[int]:
        """cu_seqlens on the host."""
        return [0, *np.cumsum(self.lengths).tolist()]

    def shape(self, ranks: int) -> dict[str, int]:
        """The sizes of a row of the result file, tokens first."""
        sizes = {"tokens": self.tokens, "documents": len(self.lengths)}
        sizes |= {"query_heads": self.heads.query_heads, "kv_heads": self.heads.kv_heads, "head_dim": self.heads.head_dim}
        return sizes | {"ranks": ranks} | ({} if self.seed is None else {"seed": self.seed})


def fine_tuning_lengths(seed: int, tokens: int = 32768) -> tuple[int, ...]:
    """Log-normal lengths (median 600, sigma 1.2, clipped to 16-8192) until the pack is full; the last is cut to fit."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        drawn = int(np.clip(np.exp(generator.normal(np.log(600), 1.2)), 16, 8192))
        lengths.append(min(drawn, tokens - sum(lengths)))
    return tuple(lengths)


def packs(case: str, quick: bool) -> list[Pack]:
    """The packs of a retention case, the longest or only one last; `quick` gives the same kinds a thousand times smaller."""
    if quick:
        tiny = {"retention_video64k": (150, 90, 31, 2), "retention_sft32k": (40, 16, 23, 17, 55)}
        return [Pack(case, tiny.get(case, (128,)), TINY, 0 if case == "retention_sft32k" else None)]
    if case == "retention_sft32k":
        return [Pack(case, fine_tuning_lengths(seed), QWEN, seed) for seed in SEEDS]
    if case == "retention_video64k":
        return [Pack(case, VIDEO, QWEN)]
    sizes = {"retention_128k": 131072, "retention_64k": 65536, "retention_32k": 32768, "retention_8k": 8192}
    return [Pack(case, (sizes[case],), QWEN)]
