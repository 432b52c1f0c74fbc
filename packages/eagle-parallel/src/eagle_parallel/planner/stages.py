"""Into how many stages of KV heads a gather is cut: one rule for attention and for the planner, which loads no torch."""

from __future__ import annotations

from typing import NamedTuple

# Received bytes for which one more stage pays for time. On an H200 each stage costs some of the kernels' time (a call ends with
# idle multiprocessors: 1.2 % for two stages of a 64K document forward and backward, 4 % at 32K), where NVLink brings all of the
# 67 MB of 64K in 0.3 ms.
STAGE_BYTES = 128 * 2**20

# Received bytes from which backward takes three stages for memory: the kernel's own gradients for every query head are most of
# what a rank holds. Of four KV heads the first stage then has two, while no gradients of another stage are there yet, and the
# others one. Earlier it would cost 1 % of a 64K document's time.
MEMORY_BYTES = 128 * 2**20
_MEMORY_STAGES = 3


class StageCounts(NamedTuple):
    """Stages of the forward and of the backward pass."""

    forward: int
    backward: int

    @property
    def keeps(self) -> bool:
        """Whether gathered keys are few enough to be kept for the backward pass, which then gathers nothing."""
        return self.forward == self.backward == 1


def stage_counts(received: float, fewest_kv_heads: int) -> StageCounts:
    """Stages of a gather.

    Args:
        received: bytes that the busiest rank receives in forward.
        fewest_kv_heads: KV heads of the Ulysses rank that has the fewest; a stage has at least one.
    """
    most = max(1, fewest_kv_heads)
    forward = min(most, max(1, int(received) // STAGE_BYTES))
    return StageCounts(forward, min(most, max(forward, _MEMORY_STAGES if received >= MEMORY_BYTES else 1)))


def stage_borders(kv_heads: int, count: int) -> list[int]:
    """Where the stages of a rank's KV heads begin and the last one ends: as equal as possible, larger ones first."""
    return [-(-kv_heads * place // count) for place in range(count + 1)]
