"""What every attention kernel computes: consecutive runs of queries against consecutive runs of keys, the varlen contract.

Run i of the queries sees run i of the keys and nothing else: all of it, or, if causal, aligned at the lower right corner, so that
the last query sees every key and each query before it one key less. Not for sliding windows, dropout or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Query rows [query_start, query_end) against key rows [key_start, key_end).

    Query i of the span sees its key j, both counted from 0, when j <= first_position + i.
    """

    query_start: int
    query_end: int
    key_start: int
    key_end: int
    first_position: int


@dataclass(frozen=True, eq=False)
class Segments:
    """Lengths of the runs, on the host, and their borders on the device.

    `cu_queries` and `cu_keys` are int32 [segments + 1]. Build with `Segments.of`; empty segments are left out by the builder.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    causal: bool
    cu_queries: Tensor = field(repr=False)
    cu_keys: Tensor = field(repr=False)

    @classmethod
    def of(
        cls, query_lengths: Sequence[int], key_lengths: Sequence[int], *, causal: bool, device: torch.device | str = "cpu"
    ) -> Segments:
        """Segments with borders on a device.

        Raises:
            ValueError: the counts differ, or a segment has no query, no key, or (causal) fewer keys than queries.
        """
        if len(query_lengths) != len(key_lengths):
            raise ValueError(f"{len(query_lengths)} query_lengths but {len(key_lengths)} key_lengths; one of each a segment.")
        for place, (queries, keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
            if queries < 1 or keys < 1 or (causal and keys < queries):
                raise ValueError(f"segment {place} has {queries} queries and {keys} keys; leave segments that see nothing out.")
        borders = (to_device([0, *accumulate(lengths)], device, torch.int32) for lengths in (query_lengths, key_lengths))
        return cls(tuple(query_lengths), tuple(key_lengths), causal, *borders)

    @cached_property
    def queries(self) -> int:
        return sum(self.query_lengths)

    @cached_property
    def keys(self) -> int:
        return sum(self.key_lengths)

    @cached_property
    def longest_queries(self) -> int:
        return max(self.query_lengths, default=0)

    @cached_property
    def longest_keys(self) -> int:
        return max(self.key_lengths, default=0)

    def spans(self) -> list[Span]:
        """The same as spans with explicit positions."""
        spans, query, key = [], 0, 0
        for queries, keys in zip(self.query_lengths, self.key_lengths, strict=True):
            spans.append(Span(query, query + queries, key, key + keys, keys - queries if self.causal else keys))
            query, key = query + queries, key + keys
        return spans


def dense(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its last dimension is not dense (an expanded gradient), as GPU kernels need it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def to_device(values: Sequence[int] | Tensor, device: torch.device | str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Host integers as a tensor on a device, without waiting for the device."""
    host = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
