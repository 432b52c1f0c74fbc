"""Columns of whole numbers as bytes: the first number, then differences in the narrowest type that holds them all.

Promises that `unpack` gives back exactly what `pack` was given, any int64 included. Of an index of 108000 frames they take 1.0 MB
so and 4.3 MB without (`FrameIndex.to_bytes`). Knows nothing of frames; compresses no further.
"""

from __future__ import annotations

import numpy as np

__all__ = ["pack", "unpack"]

_KINDS = ("<i1", "<i2", "<i4", "<i8")


def pack(numbers: np.ndarray) -> tuple[str, bytes]:
    """The kind of the differences and the bytes of an int64 array of at least one number. Differences wrap around, as sums do."""
    numbers = np.asarray(numbers, np.int64)
    steps = np.diff(numbers)
    low, high = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
    kind = next(kind for kind in _KINDS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return kind, numbers[:1].astype("<i8").tobytes() + steps.astype(kind).tobytes()


def unpack(kind: str, count: int, data: bytes, at: int) -> tuple[np.ndarray, int]:
    """`count` numbers that `pack` wrote at byte `at`, int64, and the byte behind them. Raises ValueError: none are there."""
    if kind not in _KINDS or count < 1:
        raise ValueError(f"{count} numbers of kind {kind!r}")
    steps = np.frombuffer(data, kind, count - 1, at + 8)
    numbers = np.empty(count, np.int64)
    numbers[0] = np.frombuffer(data, "<i8", 1, at)[0]
    np.cumsum(steps, dtype=np.int64, out=numbers[1:])
    numbers[1:] += numbers[0]
    return numbers, at + 8 + steps.nbytes
