"""The operators as nn.Modules, with the parameter names of the modules that they stand in for.

A state dict of transformers' Qwen2, Qwen3 or Llama RMSNorm and MLP, of SigLIP's MLP or of torch's LayerNorm loads into the
module of the same kind unchanged. To change a model that exists, use `apply` instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.ops.bias_gelu import bias_gelu_tanh
from eagle_kernels.ops.gated_unit import swiglu
from eagle_kernels.ops.layer_norm import layer_norm
from eagle_kernels.ops.rms_norm import rms_norm
from eagle_kernels.tiled_mlp import tiled_swiglu_mlp


class RMSNorm(nn.Module):
    """`rms_norm` with parameter `weight` [hidden], ones at first. Input and output [..., hidden]."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.variance_epsilon}"


class LayerNorm(nn.Module):
    """`layer_norm` with parameters `weight` (ones) and `bias` (zeros), both [hidden]. Input and output [..., hidden]."""

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return layer_norm(hidden_states, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class SwiGLUMLP(nn.Module):
    """down_proj(silu(gate_proj(x)) * up_proj(x)); [..., hidden] to [..., hidden] through intermediate_size.

    Args:
        hidden_size: the last size of input and output.
        intermediate_size: the width between the projections.
        bias: whether the projections have one.
        tile_tokens: run over this many tokens at a time (see `tiled_swiglu_mlp`), without bias only; None runs all at once.

    Raises:
        ValueError: tile_tokens together with bias.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False, tile_tokens: int | None = None) -> None:
        super().__init__()
        if bias and tile_tokens is not None:
            raise ValueError("SwiGLUMLP: tile_tokens needs bias=False; tiles have no bias.")
        self.tile_tokens = tile_tokens
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.tile_tokens is not None:
            weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
            return tiled_swiglu_mlp(x, *weights, tile_tokens=self.tile_tokens)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class GELUTanhMLP(nn.Module):
    """fc2(gelu_tanh(fc1(x))), the MLP of SigLIP; [..., hidden] to [..., hidden] through intermediate_size."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(bias_gelu_tanh(F.linear(hidden_states, self.fc1.weight), self.fc1.bias))
