"""Forwards that this package sets on single module instances: set, recognise, remove.

A forward is a functools.partial over a module-level function, in the instance's `__dict__`: deepcopy and pickle rebind it to the
copied module, the class stays as it is, and removing it leaves no trace. What the forwards compute is in `forwards`, `rotary`
and `causal_lm`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def released_class(module: nn.Module) -> type:
    """The class a module was built from; FSDP2 replaces a module's class by a subclass of it and of FSDPModule."""
    cls = type(module)
    if cls.__name__.startswith("FSDP") and any(base.__name__ == "FSDPModule" for base in cls.__bases__):
        return cls.__bases__[1]
    return cls


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call the forward of the module's class, as if nothing were set on the instance."""
    return type(module).forward(module, *args, **kwargs)


def set_forward(module: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Let calls of this instance run `function(module, *args, <the call's arguments>, **kwargs)`."""
    vars(module)["forward"] = partial(function, module, *args, **kwargs)


def applied_forward(module: nn.Module) -> partial[Any] | None:
    """The forward that this package set on the instance, or None."""
    forward = module.__dict__.get("forward")
    if isinstance(forward, partial) and forward.func.__module__.partition(".")[0] == "eagle_kernels":
        return forward
    return None


def is_applied(module: nn.Module) -> bool:
    """True when this instance's forward is one that `apply` set."""
    return applied_forward(module) is not None


def has_foreign_forward(module: nn.Module) -> bool:
    """True when another library has set `forward` on this instance (an offload hook, for example)."""
    return "forward" in module.__dict__ and not is_applied(module)


def is_plain_linear(module: nn.Module) -> bool:
    """True for torch.nn.Linear itself, computing as its class or this package does: no adapter, no quantised subclass."""
    return released_class(module) is nn.Linear and not has_foreign_forward(module)


def remove_forward(module: nn.Module) -> None:
    """Take this package's forward off the instance, if it has one."""
    if is_applied(module):
        del vars(module)["forward"]
