"""The implementations that are compared, behind one table of operators each: ours, plain PyTorch and the peer libraries.

Promises: a peer that cannot be imported is reported with its reason, an operator that a peer lacks is a missing key, an option
that it lacks raises `NotOffered`. Peers are called as their own documentation does, with defaults unless a name says otherwise.

Signatures: rms_norm(x, weight, eps); add_rms_norm(x, residual, weight, eps) -> (normed, summed); rope(q, k, cos, sin);
rope_from_positions(q, k, position_ids, inv_freq); swiglu(gate, up); linear_ce(hidden, weight, Supervision) -> the summed loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Operator = Callable[..., Any]
Operators = dict[str, Operator]
PEERS = ("eager", "compile", "liger", "quack", "cce")
IGNORED = -100


class NotOffered(Exception):
    """A peer has the operator but not the option that the case needs."""


@dataclass(frozen=True)
class Supervision:
    """What the loss is told: labels [tokens], -100 for none; the supervised rows, on the host; weights [tokens] or None."""

    labels: Tensor
    rows: Tensor
    weight: Tensor | None = None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def eager_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def eager_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    summed = x + residual
    return eager_rms_norm(summed, weight, eps), summed


def eager_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]
    return rotate(q, cos, sin), rotate(k, cos, sin)


def eager_rope_from_positions(q: Tensor, k: Tensor, position_ids: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].float() * inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1)
    return eager_rope(q, k, angles.cos().to(q.dtype), angles.sin().to(q.dtype))


def eager_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def summed_loss(hidden: Tensor, weight: Tensor, labels: Tensor, loss_weight: Tensor | None) -> Tensor:
    logits = F.linear(hidden, weight).float()
    if loss_weight is None:
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return (F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED) * loss_weight).sum()


def eager() -> dict[str, Operators]:
    """What a model does without any library: separate PyTorch operators, casts as in transformers."""
    return {
        "eager": {
            "rms_norm": eager_rms_norm,
            "add_rms_norm": eager_add_rms_norm,
            "rope": eager_rope,
            "rope_from_positions": eager_rope_from_positions,
            "swiglu": eager_swiglu,
            "linear_ce": lambda hidden, weight, given: summed_loss(hidden, weight, given.labels, given.weight),
        }
    }


def compiled() -> dict[str, Operators]:
    """The eager functions under torch.compile, specialised to each shape (dynamic shapes would be slower)."""
    operators = {
        name: torch.compile(operator, dynamic=False) for name, operator in eager()["eager"].items() if name != "linear_ce"
    }
    loss = torch.compile(summed_loss, dynamic=False)
    operators["linear_ce"] = lambda hidden, weight, given: loss(hidden, weight, given.labels, given.weight)
    return {"compile": operators}


def liger() -> dict[str, Operators]:
    """Liger-Kernel's autograd functions as its modules call them; `liger_fp32` sums the head's gradient in float32."""
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction  # pyright: ignore[reportMissingImports]
    from liger_kernel.ops.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearCrossEntropyFunction,
    )
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # pyright: ignore[reportMissingImports]
    from liger_kernel.transformers.rope import liger_rotary_pos_emb  # pyright: ignore[reportMissingImports]

    def loss(hidden: Tensor, weight: Tensor, given: Supervision, accum_dtype: torch.dtype | None = None) -> Tensor:
        reduction = "sum" if given.weight is None else "none"
        settings = (None, None, IGNORED, 0.0, 0.0, reduction, None, False, accum_dtype)
        answer = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, given.labels, *settings)
        losses = answer[0] if isinstance(answer, tuple) else answer
        return losses if given.weight is None else (losses * given.weight).sum()

    return {
        "liger": {
            "rms_norm": lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False),
            "add_rms_norm": LigerFusedAddRMSNormFunction.apply,
            "rope": liger_rotary_pos_emb,
            "swiglu": LigerSiLUMulFunction.apply,
            "linear_ce": loss,
        },
        "liger_fp32": {"linear_ce": lambda hidden, weight, given: loss(hidden, weight, given, torch.float32)},
    }


def quack() -> dict[str, Operators]:
    """QuACK's RMSNorm and chunked linear cross-entropy (its default chunk of 4096 rows)."""
    from quack import rmsnorm  # pyright: ignore[reportMissingImports]
    from quack.linear_cross_entropy import chunked_linear_cross_entropy  # pyright: ignore[reportMissingImports]

    def loss(hidden: Tensor, weight: Tensor, given: Supervision) -> Tensor:
        if given.weight is not None:
            raise NotOffered("no loss per token: reduction is mean or sum")
        return chunked_linear_cross_entropy(hidden, weight, given.labels, ignore_index=IGNORED, reduction="sum")

    return {
        "quack": {
            "rms_norm": lambda x, weight, eps: rmsnorm(x, weight, eps=eps),
            "add_rms_norm": lambda x, residual, weight, eps: rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True),
            "linear_ce": loss,
        }
    }


def cce() -> dict[str, Operators]:
    """Cut Cross-Entropy with its default gradient filter, and as `cce_exact` without one."""
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    def loss(hidden: Tensor, weight: Tensor, given: Supervision, **options: Any) -> Tensor:
        reduction = "sum" if given.weight is None else "none"
        losses = linear_cross_entropy(
            hidden, weight, given.labels, ignore_index=IGNORED, reduction=reduction, impl="cce", **options
        )
        return losses if given.weight is None else (losses * given.weight).sum()

    return {
        "cce": {"linear_ce": loss},
        "cce_exact": {"linear_ce": lambda hidden, weight, given: loss(hidden, weight, given, filter_eps=None)},
    }


def ours(chunk_rows: int) -> Operators:
    """eagle_kernels' public functions; one that this version lacks is a missing key."""
    import eagle_kernels

    operators = {
        name: getattr(eagle_kernels, name)
        for name in ("rms_norm", "add_rms_norm", "rope", "rope_from_positions", "swiglu")
        if hasattr(eagle_kernels, name)
    }

    def loss(hidden: Tensor, weight: Tensor, given: Supervision) -> Tensor:
        return eagle_kernels.linear_cross_entropy(
            hidden, weight, given.labels, loss_weight=given.weight, loss_rows=given.rows, chunk_rows=chunk_rows
        )

    return {**operators, "linear_ce": loss}


LOADERS: dict[str, Callable[[], dict[str, Operators]]] = {
    "eager": eager,
    "compile": compiled,
    "liger": liger,
    "quack": quack,
    "cce": cce,
}


def load(names: Sequence[str], chunk_rows: int) -> tuple[dict[str, Operators], dict[str, str]]:
    """(implementations, absent): ours and the named peers, in the order of timing; an absent peer has its reason instead.

    Raises:
        ValueError: a name is no peer.
    """
    unknown = [name for name in names if name not in LOADERS]
    if unknown:
        raise ValueError(f"--peers: {unknown[0]!r} is not one of {', '.join(PEERS)}.")
    found = {"eagle": ours(chunk_rows)}
    absent = {}
    for name in names:
        try:
            found.update(LOADERS[name]())
        except Exception as error:  # a peer may fail at import in its own ways (no GPU, another CUDA)
            absent[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return found, absent
