"""Watches a run for tensors of tokens x tokens: masks and scores that a long prefill must never make.

It sees every tensor that an operator gives back, views included; what a fused kernel holds inside is invisible to it, and is not
memory either. It slows a run down: not for a run that is timed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class SquareTensors(TorchDispatchMode):
    """While entered: `largest` is the most elements of a tensor made, `found` the shapes with two sides of at least `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.largest = 0
        self.found: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
                if sum(side >= self.tokens for side in value.shape) > 1:
                    self.found.add(tuple(value.shape))
        return result
