"""Put this package's operators into a model that exists, instance by instance, and take them out again.

`apply` sets `forward` on single module instances: no class, no module of transformers and no other model changes, parameters
and state dicts stay as they are, and `revert` leaves no trace. `explain` says what was done to each module and why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from eagle_kernels.ops.gated_unit import swiglu as swiglu_op
from eagle_kernels.ops.rms_norm import rms_norm as rms_norm_op
from eagle_kernels.targets import find_target


def _rms_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm_op(hidden_states, module.weight, module.variance_epsilon)


def _swiglu_forward(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(swiglu_op(module.gate_proj(x), module.up_proj(x)))


_FORWARDS: dict[str, Callable[..., Tensor]] = {"rms_norm": _rms_norm_forward, "swiglu": _swiglu_forward}


def is_applied(module: nn.Module) -> bool:
    """True when this instance's forward is one that `apply` set."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func in _FORWARDS.values()


def has_foreign_forward(module: nn.Module) -> bool:
    """True when another library has set `forward` on this instance (an offload hook, for example)."""
    return "forward" in vars(module) and not is_applied(module)


def apply(model: nn.Module, *, rms_norm: bool = True, swiglu: bool = True) -> nn.Module:
    """Let a model's RMSNorm and SwiGLU MLP instances compute through this package, wherever they sit inside it.

    Covers the RMSNorm and MLP classes of transformers' Qwen2, Qwen3 and Llama, exactly those classes. A module that another
    library has given its own forward is left alone. Applying twice is the same as once.

    Args:
        model: any nn.Module, also a composite one (Eagle, LLaVA) or one tower of it. Changed in place.
        rms_norm: put the operator into RMSNorm modules; False leaves them as they are now.
        swiglu: put the operator into SwiGLU MLPs; False leaves them as they are now.

    Returns:
        The same model.

    Raises:
        TypeError: model is not an nn.Module.

    Warns:
        UserWarning: something was asked for and the model holds nothing that can be replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply: model must be a torch.nn.Module, got {type(model).__name__}.")
    wanted = {"rms_norm": rms_norm, "swiglu": swiglu}
    found = 0
    for path, module in model.named_modules():
        target = find_target(path, module)
        if target is None or not target.replaceable or not wanted[target.operator] or has_foreign_forward(module):
            continue
        # partial and not a bound method: deepcopy and pickle then rebind it to the copied module.
        vars(module)["forward"] = partial(_FORWARDS[target.operator], module)
        found += 1
    if not found and any(wanted.values()):
        warnings.warn(
            f"eagle_kernels.apply changed nothing in {type(model).__name__}; print(eagle_kernels.explain(model)) says why.",
            stacklevel=2,
        )
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo `apply` on every module of the model; a model without anything to undo is returned as it is.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model must be a torch.nn.Module, got {type(model).__name__}.")
    for module in model.modules():
        if is_applied(module):
            del vars(module)["forward"]
    return model
