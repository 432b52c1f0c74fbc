"""The short way to a kernel in eager mode: an autograd Function made from the same parts as the registered operator.

A registered operator costs the host about as long as a small kernel takes the GPU. Where nothing traces, the same body, saved
tensors and backward formula run without it; where something does (torch.compile, fake tensors), the operator is what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def with_short_way(operator: Any, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Register the operator's autograd formula, and return a callable that takes the short way where it may.

    Args:
        operator: from `torch.library.custom_op`; its first argument is a tensor.
        setup_context: (ctx, inputs, output) -> None, as both torch.library and autograd Functions call it.
        backward: (ctx, *grads) -> a gradient for every input.
    """
    operator.register_autograd(backward, setup_context=setup_context)
    body = operator._init_fn

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = body(*arguments)
        setup_context(ctx, arguments, output)
        return output

    # One forward with its context: torch reads the signature of a separate setup_context at every call, which takes longer.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"_Eager_{operator._name.partition('::')[2]}", (torch.autograd.Function,), methods)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or type(arguments[0]) not in (Tensor, nn.Parameter):
            return operator(*arguments)
        return function.apply(*arguments)  # pyright: ignore[reportAttributeAccessIssue]

    return call
