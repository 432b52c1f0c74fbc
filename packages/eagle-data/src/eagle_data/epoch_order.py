"""The order of an epoch: which row of which source is drawn when, computed for any draw without the ones before it.

An epoch is a keyed permutation (where it is large, a Feistel network with cycle walking) of everything that its
mixture holds, so ten million rows need no list in memory and no time to resume. Sources mix by how often an epoch
repeats them. The hash is written out here, so that an order stays what it is across versions of numpy. Not for
cryptography.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDS = 8
_SORTED = 4096
"""Up to this size places are sorted by hash instead: a Feistel network of so few bits prefers some places."""
_ALMOST_WHOLE = 1e-6
"""A number of rows this near to a whole one is that one: 0.2 of 1000 rows are 200, however floats multiply."""
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the finaliser of splitmix64


def permuted(index: np.ndarray, size: int, *key: Any) -> np.ndarray:
    """Where the permutation of `range(size)` that `key` names sends each of `index`; int64 of the same shape.

    Equal keys (compared by `repr`) are one permutation, others are as good as independent. IndexError outside the range.
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (int(index.min()) < 0 or int(index.max()) >= size):
        raise IndexError(f"a permutation of {size} has no place {int(index.max())} or {int(index.min())}")
    if size < 2:
        return np.zeros_like(index)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    if size <= _SORTED:
        return np.argsort(_hash(_hash(np.arange(size, dtype=np.uint64), keys[0]), keys[1]), kind="stable")[index]
    bits = (size - 1).bit_length()
    values = _feistel(index.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values.reshape(-1) >= size)
    flat = values.reshape(-1)
    while len(outside):  # fewer than half of the domain lie outside, so each turn halves them
        flat[outside] = _feistel(flat[outside], bits, keys)
        outside = outside[flat[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_hash(high, key) & low_mask)
        else:
            high = high ^ (_hash(low, key) & high_mask)
    return (high << low_bits) | low


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    mixed = values + key
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MIX[0]
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX[1]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _rounded(number: float, *key: Any) -> int:
    """`number` or, where it is not whole, one of its neighbours, drawn by `key` so that `number` is the mean over keys."""
    if abs(number - round(number)) <= _ALMOST_WHOLE:
        return round(number)
    drawn = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") / 2**64
    return math.floor(number) + (drawn < number - math.floor(number))


@dataclass(frozen=True)
class Draws:
    """Some draws of an epoch, int64 each of one shape: `source` and its `row`, and which `copy` of the row, from 0."""

    source: np.ndarray
    row: np.ndarray
    copy: np.ndarray


class EpochOrder:
    """Epoch `epoch` of a mixture: `sizes[s]` rows of source s, `repeats[s]` passes over them.

    A repeat of 2.5 is every row twice and half of the rows, drawn anew each epoch, once more. Where that half is no whole
    number of rows, it is the next lower or the next higher one, drawn for each epoch and source so that epochs have the right
    number on average: one row at 0.5 is in about every other epoch. `size` is the number of draws. Raises ValueError for a
    repeat that is negative or not finite.
    """

    def __init__(self, sizes: Sequence[int], repeats: Sequence[float], *, seed: int, epoch: int):
        self._sizes = np.asarray(sizes, dtype=np.int64)
        for source, repeat in enumerate(repeats):
            if not (math.isfinite(repeat) and repeat >= 0):
                raise ValueError(f"source {source} has repeat {repeat}; give a finite number of passes that is not negative")
        self._whole = np.asarray([int(repeat) for repeat in repeats], dtype=np.int64)
        parts = [
            _rounded((repeat - int(repeat)) * size, "rounding", source, int(seed), int(epoch))
            for source, (size, repeat) in enumerate(zip(sizes, repeats, strict=True))
        ]
        self._starts = np.concatenate([[0], np.cumsum(self._whole * self._sizes + np.asarray(parts, dtype=np.int64))])
        self._parts = [source for source, part in enumerate(parts) if part]
        self._key = (int(seed), int(epoch))
        self.size = int(self._starts[-1])

    def __getitem__(self, draws: np.ndarray) -> Draws:
        """What `draws` (int64, each in 0 .. size - 1) draw; IndexError outside."""
        items = permuted(draws, self.size, "order", *self._key)
        source = np.searchsorted(self._starts, items, side="right") - 1
        copy, row = np.divmod(items - self._starts[source], np.maximum(self._sizes[source], 1))
        partial = copy == self._whole[source]
        if partial.any():
            for number in self._parts:
                at = np.flatnonzero(partial & (source == number))
                if len(at):
                    row[at] = permuted(row[at], int(self._sizes[number]), "part", number, *self._key)
        return Draws(source, row, copy)


__all__ = ["Draws", "EpochOrder", "permuted"]
