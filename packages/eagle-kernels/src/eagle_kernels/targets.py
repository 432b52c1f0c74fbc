"""Which modules of a foreign model the operators concern, and which of them `apply` can replace, with the reason.

Classes are recognised by their exact name and module, never by a subclass test (a subclass may compute something else), so
transformers need not be imported and a tower is found wherever it sits in a composite model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Operator = Literal["rms_norm", "swiglu", "layer_norm", "bias_gelu_tanh", "rope", "linear_cross_entropy", "none"]

_REPLACEABLE: dict[tuple[str, str], Operator] = {}
for _family, _prefix in (("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("llama", "Llama")):
    _file = f"transformers.models.{_family}.modeling_{_family}"
    _REPLACEABLE[_file, f"{_prefix}RMSNorm"] = "rms_norm"
    _REPLACEABLE[_file, f"{_prefix}MLP"] = "swiglu"
_OWN: dict[str, Operator] = {
    "RMSNorm": "rms_norm",
    "SwiGLUMLP": "swiglu",
    "LayerNorm": "layer_norm",
    "GELUTanhMLP": "bias_gelu_tanh",
}
# hidden_act "silu" gives transformers' SiLUActivation, "swish" gives torch's SiLU.
_SILU_CLASSES = ("SiLU", "SiLUActivation")


@dataclass(frozen=True)
class Target:
    """A module that an operator concerns: the operator, whether `apply` can replace the forward, and why not if it cannot."""

    operator: Operator
    replaceable: bool
    why: str = ""
    native: bool = False


def find_target(path: str, module: nn.Module) -> Target | None:
    """What `apply` makes of one module, or None where no operator of this package concerns it (plain Linear, Embedding, …)."""
    cls = type(module)
    if cls.__module__ == "eagle_kernels.modules" and cls.__name__ in _OWN:
        return Target(_OWN[cls.__name__], replaceable=False, why="this package's own module", native=True)
    operator = _REPLACEABLE.get((cls.__module__, cls.__name__))
    if operator == "swiglu":
        activation = type(getattr(module, "act_fn", None)).__name__
        if activation not in _SILU_CLASSES:
            return Target("swiglu", replaceable=False, why=f"its activation is {activation}, not SiLU")
    if operator is not None:
        return Target(operator, replaceable=True)
    return _not_replaceable(path, module, cls)


def _not_replaceable(path: str, module: nn.Module, cls: type) -> Target | None:
    if any((base.__module__, base.__name__) in _REPLACEABLE for base in cls.__mro__):
        return Target("none", replaceable=False, why=f"{cls.__qualname__} is a subclass and may compute something else")
    if isinstance(module, nn.LayerNorm):
        return Target(
            "layer_norm", replaceable=False, why="torch's own LayerNorm is one kernel already; apply() has nothing better yet"
        )
    if cls.__name__ in ("SiglipMLP", "Siglip2MLP"):
        return Target("bias_gelu_tanh", replaceable=False, why="apply() does not cover SigLIP's MLP yet; the function exists")
    if cls.__name__.endswith("RotaryEmbedding"):
        return Target("rope", replaceable=False, why="rotation is a function inside attention; apply() does not cover it yet")
    if isinstance(module, nn.Linear) and path.rpartition(".")[2] == "lm_head":
        return Target(
            "linear_cross_entropy",
            replaceable=False,
            why="makes logits when called; a loss calls linear_cross_entropy on its weight",
        )
    if cls.__name__.endswith(("Norm", "MLP")):
        return Target("none", replaceable=False, why=f"{cls.__qualname__} is not a class that apply() knows")
    return None
