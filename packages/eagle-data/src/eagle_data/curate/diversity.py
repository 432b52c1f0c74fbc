"""The diversity rule (section 4.2, step 1 of the paper): keep a clip that is unlike everything that is there already.

Pure arithmetic on unit vectors: S_max(a) = max over b of cos(a, b), keep a where S_max(a) < threshold. Exact, by blocks of
bounded memory. Not for making the vectors: that is `embedding`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Novelty", "novel"]

_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Novelty:
    """What the rule says of n candidates, in their order.

    Attributes:
        kept: bool ``[n]``.
        largest: float32 ``[n]``, the cosine to `nearest`; -1 where there was nothing to compare with.
        nearest: int64 ``[n]``, what decided: a row of the existing set, or ``len(existing) + i`` for candidate i; -1 for none.
    """

    kept: np.ndarray
    largest: np.ndarray
    nearest: np.ndarray


def novel(candidates: np.ndarray, existing: np.ndarray, threshold: float, within: float | None = None) -> Novelty:
    """Apply the rule.

    Args:
        candidates: float32 ``[n, dim]``, unit vectors.
        existing: float32 ``[m, dim]``, unit vectors; m may be 0.
        threshold: a clip with a cosine of this or more to the existing set is dropped.
        within: also drop a clip with a cosine of this or more to an earlier candidate that was kept; None does not look.
    """
    n, m = len(candidates), len(existing)
    largest, nearest = np.full(n, -1, np.float32), np.full(n, -1, np.int64)
    for first in range(0, n, _BLOCK):
        for start in range(0, m, _BLOCK):
            cosines = candidates[first : first + _BLOCK] @ existing[start : start + _BLOCK].T
            _raise(largest, nearest, first, cosines, np.arange(start, start + cosines.shape[1]))
    kept = largest < threshold
    if within is not None:
        _drop_repeats(candidates, within, kept, largest, nearest, m)
    return Novelty(kept, largest, nearest)


def _drop_repeats(
    candidates: np.ndarray, within: float, kept: np.ndarray, largest: np.ndarray, nearest: np.ndarray, existing: int
) -> None:
    """Unmark, in order, what repeats an earlier candidate that is kept."""
    before = np.empty(0, np.int64)
    for first in range(0, len(candidates), _BLOCK):
        open_ = first + np.flatnonzero(kept[first : first + _BLOCK])
        best, who = np.full(len(open_), -1, np.float32), np.full(len(open_), -1, np.int64)
        for start in range(0, len(before), _BLOCK):
            rows = before[start : start + _BLOCK]
            _raise(best, who, 0, candidates[open_] @ candidates[rows].T, rows)
        inside = candidates[open_] @ candidates[open_].T
        for i in range(len(open_)):
            earlier = np.flatnonzero(kept[open_[:i]])
            if len(earlier):
                closest = earlier[int(inside[i, earlier].argmax())]
                if inside[i, closest] > best[i]:
                    best[i], who[i] = inside[i, closest], open_[closest]
            if best[i] >= within:
                kept[open_[i]] = False
                largest[open_[i]], nearest[open_[i]] = best[i], existing + who[i]
        before = np.concatenate([before, open_[kept[open_]]])


def _raise(best: np.ndarray, who: np.ndarray, first: int, cosines: np.ndarray, names: np.ndarray) -> None:
    """Take over the larger cosines of a block, with whose they are, into rows `first` and on."""
    columns = cosines.argmax(axis=1)
    values = cosines[np.arange(len(cosines)), columns]
    rows = slice(first, first + len(cosines))
    better = values > best[rows]
    best[rows][better] = values[better]
    who[rows][better] = names[columns[better]]
