"""Every operator that has a kernel, as one table: what runs, its truth, what a model runs without it, and its arguments.

A test that takes an `Operator` says something about all of them. Sizes are (lead, columns): any leading dimensions and the
length of the last one. Linear + cross-entropy has tests of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import eagle_kernels
import torch
import torch.nn.functional as F
from eagle_kernels.ops.bias_gelu import naive_bias_gelu_tanh
from eagle_kernels.ops.gated_unit import naive_geglu, naive_swiglu
from eagle_kernels.ops.layer_norm import naive_layer_norm
from eagle_kernels.ops.rms_norm import naive_add_rms_norm, naive_rms_norm
from eagle_kernels.ops.rope import naive_rope, naive_rope_from_positions, rope_from_positions
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

EPS = 0.1
"""Large, so that gradients of rows of one or two columns are well conditioned."""
SCALING = 1.25

Lead = Sequence[int]
Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Operator:
    """One public function with the tensors it takes.

    `shapes` gives those that are differentiated, `constants` makes the rest. `row_axes` says along which axis of each
    tensor (differentiated, then constant) rows are independent, None where a tensor belongs to all rows.
    """

    name: str
    run: Callable[..., Any]
    truth: Callable[..., Any]
    eager: Callable[..., Any]
    shapes: Callable[[Lead, int], Shapes]
    constants: Callable[[Lead, int, torch.dtype, str], list[Tensor]] = field(default=lambda *_: [])
    row_axes: tuple[int | None, ...] = (0, None)

    @property
    def rotates(self) -> bool:
        return self.name.startswith("rope")

    def make(self, lead: Lead, columns: int, dtype: torch.dtype, device: str) -> tuple[list[Tensor], list[Tensor]]:
        """(tensors to differentiate, constants) with entries of size one and a few in the tails of the activations."""
        tensors = [torch.randn(shape, dtype=torch.float32, device=device) * 2 for shape in self.shapes(lead, columns)]
        return [tensor.to(dtype) for tensor in tensors], self.constants(lead, columns, dtype, device)


def _row(lead: Lead, columns: int) -> tuple[int, ...]:
    return (*lead, columns)


def _heads(lead: Lead, columns: int) -> Shapes:
    """q and k with half as many heads; lead is (batch, tokens, heads), head_dim is `columns` rounded up to an even number."""
    batch, tokens, heads = (*(1, 1, 2)[: max(0, 3 - len(lead))], *lead[:3])
    heads, head_dim = max(1, heads), columns + columns % 2
    return [(batch, heads, tokens, head_dim), (batch, (heads + 1) // 2, tokens, head_dim)]


def _rotary_dim(columns: int, part: float) -> int:
    return 2 * max(1, int((columns + columns % 2) * part / 2))


def _inv_freq(half: int, device: str) -> Tensor:
    return 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=device) / half)


def _tables(part: float, lead: Lead, columns: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    batch, _, tokens, _ = _heads(lead, columns)[0]
    angle = torch.rand(batch, tokens, _rotary_dim(columns, part), device=device) * 6.28
    return [angle.cos().to(dtype), angle.sin().to(dtype)]


def _positions(part: float, axes: int, lead: Lead, columns: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    batch, _, tokens, _ = _heads(lead, columns)[0]
    shape = (axes, batch, tokens) if axes > 1 else (batch, tokens)
    return [torch.randint(50, shape, device=device), _inv_freq(_rotary_dim(columns, part) // 2, device)]


def _sections(inv_freq: Tensor) -> tuple[int, int, int]:
    """A split into three unequal parts."""
    pairs = inv_freq.shape[0]
    return pairs // 4, pairs // 3, pairs - pairs // 4 - pairs // 3


def _eager_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """transformers' function on the rotated part."""
    rotary_dim = cos.shape[-1]
    turned = apply_rotary_pos_emb(q[..., :rotary_dim], k[..., :rotary_dim], cos, sin)
    return tuple(torch.cat((part, whole[..., rotary_dim:]), -1) for part, whole in zip(turned, (q, k), strict=True))


def _eager_rope_from_positions(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, with_sections: bool = False) -> Any:
    """transformers' rotary module: float32 cosines and sines, rounded to q's dtype."""
    if with_sections:
        axis = torch.repeat_interleave(torch.arange(3, device=q.device), torch.tensor(_sections(inv_freq), device=q.device))
        half = positions[axis].movedim(0, -1) * inv_freq
    else:
        half = positions[..., None] * inv_freq
    full = torch.cat((half, half), -1)
    return _eager_rope(q, k, (full.cos() * SCALING).to(q.dtype), (full.sin() * SCALING).to(q.dtype))


def _with_sections(function: Callable[..., Any], q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor) -> Any:
    return function(q, k, positions, inv_freq, attention_scaling=SCALING, sections=_sections(inv_freq))


def _packed(function: Callable[..., Any], gate_up: Tensor) -> Tensor:
    return function(*gate_up.chunk(2, -1))


def _rope(name: str, part: float) -> Operator:
    return Operator(
        name,
        run=eagle_kernels.rope,
        truth=naive_rope,
        eager=_eager_rope,
        shapes=_heads,
        constants=partial(_tables, part),
        row_axes=(2, 2, 1, 1),
    )


def _rope_from_positions(name: str, part: float) -> Operator:
    return Operator(
        name,
        run=partial(rope_from_positions, attention_scaling=SCALING),
        truth=partial(naive_rope_from_positions, attention_scaling=SCALING),
        eager=_eager_rope_from_positions,
        shapes=_heads,
        constants=partial(_positions, part, 1),
        row_axes=(2, 2, 1, None),
    )


def _gated(name: str, run: Callable[..., Any], truth: Callable[..., Any], packed: bool) -> Operator:
    formula = partial(_packed, truth) if packed else truth
    return Operator(
        name,
        run=run,
        truth=formula,
        eager=formula,
        shapes=lambda lead, columns: [_row(lead, 2 * columns)] if packed else [_row(lead, columns)] * 2,
        row_axes=(0,) if packed else (0, 0),
    )


OPERATORS = [
    Operator(
        "rms_norm",
        run=partial(eagle_kernels.rms_norm, eps=EPS),
        truth=partial(naive_rms_norm, eps=EPS),
        eager=partial(naive_rms_norm, eps=EPS),
        shapes=lambda lead, columns: [_row(lead, columns), (columns,)],
    ),
    Operator(
        "add_rms_norm",
        run=partial(eagle_kernels.add_rms_norm, eps=EPS),
        truth=partial(naive_add_rms_norm, eps=EPS),
        eager=partial(naive_add_rms_norm, eps=EPS),
        shapes=lambda lead, columns: [_row(lead, columns), _row(lead, columns), (columns,)],
        row_axes=(0, 0, None),
    ),
    Operator(
        "layer_norm",
        run=partial(eagle_kernels.layer_norm, eps=EPS),
        truth=partial(naive_layer_norm, eps=EPS),
        eager=lambda x, weight, bias: F.layer_norm(x, (x.shape[-1],), weight, bias, EPS),
        shapes=lambda lead, columns: [_row(lead, columns), (columns,), (columns,)],
        row_axes=(0, None, None),
    ),
    Operator(
        "layer_norm_without_bias",
        run=lambda x, weight: eagle_kernels.layer_norm(x, weight, None, EPS),
        truth=lambda x, weight: naive_layer_norm(x, weight, None, EPS),
        eager=lambda x, weight: F.layer_norm(x, (x.shape[-1],), weight, None, EPS),
        shapes=lambda lead, columns: [_row(lead, columns), (columns,)],
    ),
    Operator(
        "bias_gelu_tanh",
        run=eagle_kernels.bias_gelu_tanh,
        truth=naive_bias_gelu_tanh,
        eager=lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        shapes=lambda lead, columns: [_row(lead, columns), (columns,)],
    ),
    _gated("swiglu", eagle_kernels.swiglu, naive_swiglu, packed=False),
    _gated("geglu", eagle_kernels.geglu, naive_geglu, packed=False),
    _gated("swiglu_packed", eagle_kernels.swiglu_packed, naive_swiglu, packed=True),
    _gated("geglu_packed", eagle_kernels.geglu_packed, naive_geglu, packed=True),
    _rope("rope", 1.0),
    _rope("rope_partial", 0.5),
    _rope_from_positions("rope_from_positions", 1.0),
    _rope_from_positions("rope_from_positions_partial", 0.5),
    Operator(
        "rope_from_positions_sections",
        run=partial(_with_sections, rope_from_positions),
        truth=partial(_with_sections, naive_rope_from_positions),
        eager=partial(_eager_rope_from_positions, with_sections=True),
        shapes=_heads,
        constants=partial(_positions, 1.0, 3),
        row_axes=(2, 2, 2, None),
    ),
]


def by_name(name: str) -> Operator:
    return next(operator for operator in OPERATORS if operator.name == name)
