"""Put this package's operators into a model that exists, instance by instance, and take them out again.

`apply` sets `forward` on single module instances: no class, no module of transformers and no other model changes, parameters
and state dicts stay as they are, and `revert` leaves no trace. `explain` says what was done to each module and why.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn

from eagle_kernels.causal_lm import causal_lm_forward
from eagle_kernels.forwards import gelu_mlp_forward, layer_norm_forward, linear_forward, rms_norm_forward, swiglu_mlp_forward
from eagle_kernels.instance import applied_forward, has_foreign_forward, is_applied, released_class, remove_forward, set_forward
from eagle_kernels.rotary import RotaryStack, RotatedForward, attention_forward, rotary_forward, rotary_stacks
from eagle_kernels.targets import Kind, find_target

Model = TypeVar("Model", bound=nn.Module)


def apply(
    model: Model,
    *,
    rms_norm: bool = True,
    layer_norm: bool = True,
    rope: bool = True,
    swiglu: bool = True,
    bias_gelu: bool = True,
    linear_cross_entropy: bool = True,
    mlp_tile_tokens: int | None = None,
) -> Model:
    """Let the modules of a model compute through this package, wherever they sit inside it.

    Covers transformers' Qwen2, Qwen3 and Llama, the MLP of SigLIP and SigLIP 2, and torch's LayerNorm; exactly those classes. A
    module that another library has given its own forward is left alone. Applying twice is the same as once. False for an
    operator leaves its modules as they are now.

    Args:
        model: any nn.Module, also a composite one (Eagle, LLaVA) or one tower of it. Changed in place.
        rms_norm: RMSNorm modules, those on queries and keys included.
        layer_norm: torch.nn.LayerNorm over one dimension, with a weight.
        rope: the rotation inside attention. Where the rotary module's rope type is default, linear, yarn or llama3 and every
            attention of its stack is replaced, it returns (position_ids, None) in place of (cos, sin), and cos and sin are
            formed in float32 inside the rotation.
        swiglu: SwiGLU MLPs.
        bias_gelu: SigLIP MLPs.
        linear_cross_entropy: the loss of a causal language model in training mode. Its output then has `logits=None`, and its
            forward takes shift_labels, loss_rows and loss_weight as well (see `causal_lm.causal_lm_forward`).
        mlp_tile_tokens: run SwiGLU MLPs over this many tokens at a time, for contexts whose intermediate activations do not
            fit; None runs them whole.

    Returns:
        The same model.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: mlp_tile_tokens is not a positive integer.

    Warns:
        UserWarning: something was asked for and the model holds nothing that can be replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply: model must be a torch.nn.Module, got {type(model).__name__}.")
    if mlp_tile_tokens is not None and (not isinstance(mlp_tile_tokens, int) or mlp_tile_tokens < 1):
        raise ValueError(f"apply: mlp_tile_tokens must be a positive integer or None, got {mlp_tile_tokens!r}.")
    wanted: dict[Kind, bool] = {
        "norm": rms_norm,
        "layer_norm": layer_norm,
        "swiglu_mlp": swiglu,
        "gelu_mlp": bias_gelu,
        "causal_lm": linear_cross_entropy,
        "attention": rope,
    }
    found = False
    for path, module in list(model.named_modules()):
        target = find_target(path, module)
        if target is None or not target.replaceable or has_foreign_forward(module) or not wanted.get(target.kind, False):
            continue
        _put(target.kind, module, mlp_tile_tokens)
        found = True
    if rope:
        for stack in stacks_of(model):
            _put_rotary(stack)
    if not found and any(wanted.values()):
        warnings.warn(
            f"eagle_kernels.apply changed nothing in {type(model).__name__}; print(eagle_kernels.explain(model)) says why.",
            stacklevel=2,
        )
    return model


def _put(kind: Kind, module: Any, tile_tokens: int | None) -> None:
    if kind == "norm":
        set_forward(module, rms_norm_forward)
    elif kind == "layer_norm":
        set_forward(module, layer_norm_forward)
    elif kind == "swiglu_mlp":
        set_forward(module, swiglu_mlp_forward, **({} if tile_tokens is None else {"tile_tokens": tile_tokens}))
    elif kind == "gelu_mlp":
        set_forward(module, gelu_mlp_forward)
        set_forward(module.fc1, linear_forward)
    elif kind == "causal_lm":
        set_forward(module, causal_lm_forward)
        set_forward(module.lm_head, linear_forward)
    elif not is_applied(module):
        # An attention outside a known stack gets cos and sin; one whose stack lies outside `model` keeps its rotary module.
        set_forward(module, attention_forward, None, RotatedForward(released_class(module)))


def _put_rotary(stack: RotaryStack) -> None:
    if stack.obstacle is not None:
        remove_forward(stack.rotary)
        return
    set_forward(stack.rotary, rotary_forward)
    for attention in stack.attentions:
        set_forward(attention, attention_forward, stack.rotary, RotatedForward(released_class(attention)))


def stacks_of(model: nn.Module) -> list[RotaryStack]:
    """The stacks of decoder layers below `model`, judged as `apply` would."""
    return list(rotary_stacks(model, lambda module: _is("rotary", module), lambda module: _is("attention", module)))


def _is(kind: Kind, module: nn.Module) -> bool:
    target = find_target("", module)
    return target is not None and target.kind == kind and target.replaceable and not has_foreign_forward(module)


def revert(model: Model) -> Model:
    """Undo `apply` on every module of the model; a model without anything to undo is returned as it is.

    An attention taken out of its stack takes the rotary module of that stack with it, which then makes cos and sin again.

    Raises:
        TypeError: model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model must be a torch.nn.Module, got {type(model).__name__}.")
    for module in model.modules():
        forward = applied_forward(module)
        if forward is None:
            continue
        if forward.func is attention_forward and forward.args[1] is not None:
            remove_forward(forward.args[1])
        remove_forward(module)
    return model
