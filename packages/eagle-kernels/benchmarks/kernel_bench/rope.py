"""Rotary position embedding of contiguous q [1, 28, tokens, 128] and k [1, 4, tokens, 128], into fresh outputs.

Three variants of the case: from given bfloat16 cos and sin (the plain names), its backward pass (`_backward`), and from
position ids, where cos and sin are formed inside (`_positions`). Bytes counted: q and k read once and written once; `ceiling` is
the copy rate less the uncounted reads of cos and sin.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernel_bench.peers import Operator, rotate
from kernel_bench.problem import Call, Problem, Setting, bind_backward, bind_forward

HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
THETA = 1e6


def exact(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Both rotations in float64, kept in float32."""
    cos, sin = cos[:, None].double(), sin[:, None].double()
    return rotate(q.double(), cos, sin).float(), rotate(k.double(), cos, sin).float()


def bind(
    operator: Operator, own: tuple[Tensor, ...], *, angle: tuple[Tensor, Tensor], grads: tuple[Tensor, ...] | None = None
) -> Call:
    """Forward, or backward where there are gradients; `angle` is (cos, sin) or (position_ids, inv_freq)."""

    def turn(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return operator(q, k, *angle)

    return bind_forward(turn, own) if grads is None else bind_backward(turn, own, grads)


def problems(setting: Setting) -> Iterator[Problem]:
    """65536 tokens, then 32768."""
    heads, kv_heads, head_dim = (4, 2, 16) if setting.quick else (HEADS, KV_HEADS, HEAD_DIM)
    inv_freq = THETA ** -(torch.arange(0, head_dim, 2, device=setting.device, dtype=torch.float32) / head_dim)
    for tokens in (64, 32) if setting.quick else (65536, 32768):
        random = setting.random()
        q, k = random(1, heads, tokens, head_dim), random(1, kv_heads, tokens, head_dim)
        grads = (torch.randn_like(q), torch.randn_like(k))
        positions = torch.arange(tokens, device=setting.device)[None]
        # The angle is a float32 product by the model's own definition; only what follows is exact.
        angles = (positions[..., None].float() * inv_freq).double().repeat(1, 1, 2)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        moved = 2 * (q.numel() + k.numel()) * 2
        # cos and sin have to be read too, but are not counted: at the copy rate this is what remains of it.
        ceiling = setting.copy_tb_s * moved / (moved + 2 * cos.numel() * 2)

        variants = (
            (
                "_positions",
                "rope_from_positions",
                partial(bind, angle=(positions, inv_freq)),
                exact(q, k, angles.cos(), angles.sin()),
            ),
            ("_backward", "rope", partial(bind, angle=(cos, sin), grads=grads), exact(*grads, cos, -sin)),
            ("", "rope", partial(bind, angle=(cos, sin)), exact(q, k, cos, sin)),
        )
        for suffix, operator, bound, truth in variants:
            yield Problem(
                case="rope",
                shape={"tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim},
                operator=operator,
                inputs=(q, k),
                bind=bound,
                truth=dict(zip(("q", "k"), truth, strict=True)),
                unit="TB/s",
                value=lambda ms, moved=moved: moved / ms / 1e9,
                suffix=suffix,
                extra={"floor": setting.copy_tb_s} | ({} if suffix == "_positions" else {"ceiling": ceiling}),
            )
