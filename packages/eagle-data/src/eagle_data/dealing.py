"""Dealing: packs of like cost to the same step, so that no rank waits long for the slowest.

Full packs cost differently, because attention grows with the square of a document's length and every tile goes
through the vision tower. Within a window of packs, the ones of a step are neighbours in cost; the order of the steps is
shuffled. Pure functions. Not for measuring a model: the coefficients are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from eagle_data.epoch_order import permuted


@dataclass(frozen=True)
class PackCost:
    """Floating-point operations of a pack, forward and backward: per token, per squared document length, per tile.

    The defaults are those of the 8B model with its vision tower at 448 x 448 tiles; only their ratios matter.
    """

    per_token: float = 4.2e10
    per_token_squared: float = 7.0e5
    per_tile: float = 3.0e12

    def of(self, lengths: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """float64 cost of each document; that of a pack is the sum over its documents."""
        tokens = np.asarray(lengths, dtype=np.float64)
        return self.per_token * tokens + self.per_token_squared * tokens**2 + self.per_tile * np.asarray(tiles, dtype=np.float64)


def deal(costs: np.ndarray, group: int, *key: Any, head: int = 0) -> np.ndarray:
    """The order, int64 `[packs]`, in which the packs of a window are given out.

    The first `head` packs complete a step that another window began; then come steps of `group` packs, each of
    neighbours in cost and ascending, in an order that `key` names; at the end is what does not fill a step. Head and
    end are the cheapest packs, where those that an epoch's end left unfilled are among themselves.
    """
    by_cost = np.argsort(np.asarray(costs), kind="stable")
    head = min(head, len(by_cost))
    steps, rest = divmod(len(by_cost) - head, group)
    dealt = by_cost[rest + head :].reshape(steps, group)[permuted(np.arange(steps), steps, "deal", *key)]
    return np.concatenate([by_cost[rest : rest + head], dealt.reshape(-1), by_cost[:rest]])


__all__ = ["PackCost", "deal"]
