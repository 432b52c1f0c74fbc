"""Which modules of a foreign model the operators concern, and which of them `apply` can replace, with the reason.

Classes are recognised by their exact name and module, never by a subclass test (a subclass may compute something else), so
transformers need not be imported and a tower is found wherever it sits in a composite model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from eagle_kernels.causal_lm import loss_obstacle
from eagle_kernels.forwards import fused_bias_obstacle
from eagle_kernels.instance import released_class
from eagle_kernels.rotary import rotation_obstacle

Operator = Literal["rms_norm", "swiglu", "layer_norm", "bias_gelu_tanh", "rope", "linear_cross_entropy", "none"]
Kind = Literal["norm", "layer_norm", "swiglu_mlp", "gelu_mlp", "attention", "rotary", "causal_lm", "head", "other"]

_OPERATORS: dict[Kind, Operator] = {
    "norm": "rms_norm",
    "layer_norm": "layer_norm",
    "swiglu_mlp": "swiglu",
    "gelu_mlp": "bias_gelu_tanh",
    "attention": "rope",
    "rotary": "rope",
    "causal_lm": "linear_cross_entropy",
    "head": "linear_cross_entropy",
    "other": "none",
}
_KNOWN: dict[tuple[str, str], Kind] = {
    ("transformers.models.siglip.modeling_siglip", "SiglipMLP"): "gelu_mlp",
    ("transformers.models.siglip2.modeling_siglip2", "Siglip2MLP"): "gelu_mlp",
    ("torch.nn.modules.normalization", "LayerNorm"): "layer_norm",
}
for _family, _prefix in (("qwen2", "Qwen2"), ("qwen3", "Qwen3"), ("llama", "Llama")):
    _file = f"transformers.models.{_family}.modeling_{_family}"
    _KNOWN[_file, f"{_prefix}RMSNorm"] = "norm"
    _KNOWN[_file, f"{_prefix}MLP"] = "swiglu_mlp"
    _KNOWN[_file, f"{_prefix}Attention"] = "attention"
    _KNOWN[_file, f"{_prefix}RotaryEmbedding"] = "rotary"
    _KNOWN[_file, f"{_prefix}ForCausalLM"] = "causal_lm"
_OWN: dict[str, Kind] = {
    "RMSNorm": "norm",
    "SwiGLUMLP": "swiglu_mlp",
    "LayerNorm": "layer_norm",
    "GELUTanhMLP": "gelu_mlp",
}
# hidden_act "silu" gives transformers' SiLUActivation, "swish" gives torch's SiLU.
_SILU_CLASSES = ("SiLU", "SiLUActivation")
_GELU_TANH_CLASSES = ("GELUTanh",)


@dataclass(frozen=True)
class Target:
    """A module that an operator concerns: what it is, whether `apply` can replace its forward, and why not if it cannot."""

    kind: Kind
    replaceable: bool
    why: str = ""
    native: bool = False

    @property
    def operator(self) -> Operator:
        return _OPERATORS[self.kind]


def find_target(path: str, module: nn.Module) -> Target | None:
    """What `apply` makes of one module, or None where no operator of this package concerns it (plain Linear, Embedding, …).

    A rotary module is judged with the layers beside it, in `rotary.rotary_stacks`; here it is replaceable if it is known.
    """
    cls = released_class(module)
    if cls.__module__ == "eagle_kernels.modules" and cls.__name__ in _OWN:
        return Target(_OWN[cls.__name__], replaceable=False, why="this package's own module", native=True)
    kind = _KNOWN.get((cls.__module__, cls.__name__))
    if kind is None:
        return _unknown(path, module, cls)
    obstacle = _obstacle(kind, module, cls)
    return Target(kind, replaceable=obstacle is None, why=obstacle or "")


def _obstacle(kind: Kind, module: Any, cls: type) -> str | None:
    if kind == "layer_norm":
        if module.weight is None:
            return "it has no weight"
        return None if len(module.normalized_shape) == 1 else "it normalises more than one dimension"
    if kind == "swiglu_mlp":
        activation = type(module.act_fn).__name__
        return None if activation in _SILU_CLASSES else f"its activation is {activation}, not SiLU"
    if kind == "gelu_mlp":
        activation = type(module.activation_fn).__name__
        if activation not in _GELU_TANH_CLASSES:
            return f"its activation is {activation}, not the tanh form of GELU"
        return fused_bias_obstacle(module)
    if kind == "attention":
        return rotation_obstacle(cls)
    return loss_obstacle(module) if kind == "causal_lm" else None


def _unknown(path: str, module: nn.Module, cls: type) -> Target | None:
    for base in cls.__mro__[1:]:
        kind = _KNOWN.get((base.__module__, base.__name__))
        if kind is not None:
            return Target("other", replaceable=False, why=f"{cls.__qualname__} is a subclass and may compute something else")
    if cls.__name__.endswith("RotaryEmbedding"):
        return Target("rotary", replaceable=False, why=f"{cls.__qualname__} is not a class that apply() knows")
    if isinstance(module, nn.Linear) and path.rpartition(".")[2] == "lm_head":
        why = "makes logits when called; a loss may call linear_cross_entropy on its weight"
        return Target("head", replaceable=False, why=why)
    if cls.__name__.endswith(("Norm", "MLP")):
        return Target("other", replaceable=False, why=f"{cls.__qualname__} is not a class that apply() knows")
    return None
