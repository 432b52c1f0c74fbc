"""What norms and MLPs run once `apply` has reached them; attention is in `rotary`, the loss in `causal_lm`.

A forward that meets something its operator does not take (mixed dtypes under autocast, an adapter put in later) runs the
class's own forward, and `explain` gives the reason by the same function that the forward asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.instance import is_applied, is_plain_linear, own_forward
from eagle_kernels.ops.bias_gelu import bias_gelu_tanh
from eagle_kernels.ops.gated_unit import swiglu
from eagle_kernels.ops.layer_norm import layer_norm
from eagle_kernels.ops.rms_norm import rms_norm
from eagle_kernels.tiled_mlp import tiled_swiglu_mlp

# Asked for once: torch.compile of torch 2.11 does not trace the question.
_AUTOCAST_DEVICES = frozenset(kind for kind in ("cuda", "cpu", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(kind))


def rms_norm_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """RMSNorm of Qwen2, Qwen3 and Llama, [..., hidden]."""
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


def layer_norm_forward(module: Any, input: Tensor) -> Tensor:
    """torch.nn.LayerNorm over one dimension, [..., hidden]; mixed dtypes, as under autocast, take torch's own."""
    if input.dtype != module.weight.dtype or _autocasts(input):
        return own_forward(module, input)
    return layer_norm(input, module.weight, module.bias, module.eps)


def swiglu_mlp_forward(module: Any, x: Tensor, *, tile_tokens: int | None = None) -> Tensor:
    """down_proj(silu(gate_proj(x)) * up_proj(x)), [..., hidden]; in tiles of `tile_tokens` tokens where nothing is in the way."""
    if tile_tokens is None or tiling_obstacle(module) is not None:
        return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))
    weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
    return tiled_swiglu_mlp(*as_autocast(x, *weights), tile_tokens=tile_tokens)


def tiling_obstacle(module: Any) -> str | None:
    """Why a SwiGLU MLP cannot run in tiles, which read the weights of its projections without calling them; None if it can."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        projection = getattr(module, name)
        if not is_plain_linear(projection):
            return f"{name} is no plain torch.nn.Linear"
        if projection.bias is not None:
            return f"{name} has a bias"
        # ZeRO-3 hooks every module, and gathers a weight that is read elsewhere as well.
        if (projection._forward_hooks or projection._forward_pre_hooks) and not hasattr(projection.weight, "ds_id"):
            return f"{name} has forward hooks, which tiles would pass by"
    return None


def gelu_mlp_forward(module: Any, hidden_states: Tensor) -> Tensor:
    """fc2(gelu_tanh(fc1(x))) of SigLIP, [..., hidden], with the bias of fc1 added where the activation is computed."""
    if not is_applied(module.fc1) or fused_bias_obstacle(module) is not None:
        return own_forward(module, hidden_states)
    return module.fc2(module.fc1(hidden_states, through=_gelu_of_linear))


def fused_bias_obstacle(module: Any) -> str | None:
    """Why the bias of fc1 cannot join the activation of a SigLIP MLP; None if it can."""
    if not is_plain_linear(module.fc1):
        return "fc1 is no plain torch.nn.Linear"
    return None if module.fc1.bias is not None else "fc1 has no bias"


def _gelu_of_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = F.linear(x, weight)
    return bias_gelu_tanh(product, bias.to(product.dtype))


def linear_forward(module: Any, input: Tensor, *, through: Callable[..., Tensor] | None = None) -> Tensor:
    """torch.nn.Linear whose call can return `through(input, weight, bias)` in place of the product.

    The weight is then read inside the module's own call, where FSDP2 and ZeRO-3 have gathered it.
    """
    if through is None:
        return own_forward(module, input)
    return through(input, module.weight, module.bias)


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast would cast them for a matrix product: unchanged where it is off, and always in float64."""
    if not _autocasts(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def _autocasts(tensor: Tensor) -> bool:
    device = tensor.device.type
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
