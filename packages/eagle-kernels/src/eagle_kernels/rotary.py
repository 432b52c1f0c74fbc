"""Rotary position embedding inside the attention of Qwen2, Qwen3 and Llama, whose code stays that of transformers.

The attention's forward is rebuilt from its own code object with another `apply_rotary_pos_emb` among its globals. Where a whole
stack is covered, its rotary module passes integer position ids on in place of cos and sin: the rotation forms them in float32
from the module's `inv_freq`, and nothing that casts floating arguments (FSDP2's mixed precision) can damage them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from eagle_kernels.instance import has_foreign_forward, own_forward, released_class
from eagle_kernels.ops.rope import rope, rope_from_positions

ROTATION = "apply_rotary_pos_emb"
EXACT_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
_RECOMPUTED_ROPE_TYPES = ("dynamic", "longrope")


def attention_forward(
    module: Any,
    rotary: nn.Module | None,
    rotated: RotatedForward,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The attention's own forward with this package's rotation.

    Args:
        module: the attention.
        rotary: the rotary module whose position ids arrive as `position_embeddings`, or None where cos and sin do.
        rotated: the rebuilt forward of the attention's class.
        hidden_states: [batch, tokens, hidden].
        position_embeddings: (position_ids, None) from `rotary_forward`, or (cos, sin).
        args: further arguments of the class's forward, which keep their order.
        kwargs: the same by name.
    """
    if rotary is not None and position_embeddings is not None and position_embeddings[1] is None:
        position_embeddings = (position_embeddings[0], rotary)
    return rotated.function(module, hidden_states, position_embeddings, *args, **kwargs)


def rotary_forward(module: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """(position_ids, None) in place of (cos, sin): int64 [batch or 1, tokens].

    None for sin, so that an attention which does not know of this fails at once. Positions that are not whole numbers, or not
    two-dimensional, get the class's own cos and sin, which `attention_forward` takes as well.
    """
    if position_ids.dim() != 2 or position_ids.is_floating_point():
        return own_forward(module, x, position_ids)
    return position_ids.to(torch.int64), None


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Any) -> tuple[Tensor, Tensor]:
    """What `apply_rotary_pos_emb` is in a rebuilt forward; (position ids, rotary module) may stand for (cos, sin)."""
    if not isinstance(sin, nn.Module):
        return rope(q, k, cos, sin)
    rotary: Any = sin
    inv_freq = rotary.inv_freq.to(device=q.device, dtype=torch.float32)
    return rope_from_positions(q, k, cos.to(q.device), inv_freq, attention_scaling=rotary.attention_scaling)


def rotation_obstacle(attention: type) -> str | None:
    """Why an attention class's forward cannot be given another rotation; None if it can."""
    forward = vars(attention).get("forward")
    if not isinstance(forward, FunctionType) or ROTATION not in forward.__code__.co_names:
        return f"the forward of {attention.__qualname__} does not call {ROTATION} by this name"
    return None


class RotatedForward:
    """The forward of an attention class with `apply_rotary_pos_emb` replaced, as `function`. Pickles as its class.

    Its globals are those of the class's file at that moment, in a module of their own: torch.compile looks a function's globals
    up in the module that their `__name__` names.
    """

    def __init__(self, attention: type) -> None:
        self.attention = attention
        forward: Any = attention.forward  # pyright: ignore[reportAttributeAccessIssue]
        name = f"eagle_kernels.rotated.{forward.__module__}"
        if name not in sys.modules:
            sys.modules[name] = _with_rotation(name, forward.__globals__)
        scope = vars(sys.modules[name])
        self.function = FunctionType(forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__)
        self.function.__kwdefaults__ = forward.__kwdefaults__

    def __reduce__(self) -> tuple[Any, ...]:
        return RotatedForward, (self.attention,)


def _with_rotation(name: str, names: dict[str, Any]) -> ModuleType:
    scope = ModuleType(name, f"The globals of {names['__name__']} with {ROTATION} of eagle_kernels.")
    own = ("__name__", "__doc__", "__spec__", "__loader__")
    vars(scope).update({key: value for key, value in names.items() if key not in own}, **{ROTATION: _rotate})
    return scope


@dataclass(frozen=True)
class RotaryStack:
    """Decoder layers that share a rotary module; `obstacle` says why positions cannot replace cos and sin, None if they can."""

    rotary: nn.Module
    attentions: tuple[nn.Module, ...]
    obstacle: str | None


def rotary_stacks(
    model: nn.Module, is_rotary: Callable[[nn.Module], bool], is_attention: Callable[[nn.Module], bool]
) -> Iterator[RotaryStack]:
    """Every module of `model` that holds `rotary_emb` beside `layers`, wherever it sits.

    Args:
        model: any module.
        is_rotary: says whether a rotary module is of a class that can be replaced.
        is_attention: the same of an attention.
    """
    for parent in model.modules():
        rotary, layers = (parent._modules.get(name) for name in ("rotary_emb", "layers"))
        if rotary is None or layers is None:
            continue
        attentions = tuple(module for module in layers.modules() if is_attention(module))
        obstacle = _rotary_obstacle(rotary, is_rotary) or _layers_obstacle(layers, is_attention)
        yield RotaryStack(rotary, attentions, obstacle)


def _rotary_obstacle(rotary: Any, is_rotary: Callable[[nn.Module], bool]) -> str | None:
    if not is_rotary(rotary):
        return f"{released_class(rotary).__qualname__} is not a class that apply() knows"
    if has_foreign_forward(rotary):
        return "another library has set forward on this instance; remove its hook, then apply()"
    if rotary.rope_type in _RECOMPUTED_ROPE_TYPES:
        return f"rope type {rotary.rope_type} changes its frequencies with the context length"
    if rotary.rope_type not in EXACT_ROPE_TYPES:
        return f"rope type {rotary.rope_type} is not one of {', '.join(EXACT_ROPE_TYPES)}"
    return None


def _layers_obstacle(layers: nn.Module, is_attention: Callable[[nn.Module], bool]) -> str | None:
    for layer in layers.children():
        found = [module for module in layer.modules() if released_class(module).__name__.endswith("Attention")]
        if not found:
            return f"a {released_class(layer).__qualname__} below it has no attention that apply() knows"
        for module in found:
            if not is_attention(module):
                return f"a {released_class(module).__qualname__} below it is not replaced and needs cos and sin"
    return None
