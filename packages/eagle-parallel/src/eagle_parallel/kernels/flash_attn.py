"""flash-attn where it is installed: generation 3 or 4 on Hopper, 4 on Blackwell, else 2. Varlen, bottom-right causal, GQA.

The functions that take an outside (out, lse) backward are not public in any generation and change from release to release: all
that is known of them is in this file. They are called by parameter name, and only with the names that the installed one has.
CUDA, bfloat16 or float16. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from eagle_parallel.kernels.segments import Segments, dense


class _Names(NamedTuple):
    module: str
    forward: str
    backward: str


_NAMES: dict[int, _Names] = {
    2: _Names("flash_attn.flash_attn_interface", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward"),
    3: _Names("flash_attn_interface", "_flash_attn_forward", "_flash_attn_backward"),
    4: _Names("flash_attn.cute.interface", "_flash_attn_fwd", "_flash_attn_bwd"),
}


def why_not(device: torch.device) -> str | None:
    """None, or why this kernel cannot run on a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"flash-attn needs a CUDA device, not {device.type}"
    if not _installed(device):
        return (
            "no flash-attn that supports this GPU is installed (pip install flash-attn, or flash-attn-4 on Hopper and Blackwell)"
        )
    return None


class FlashAttnKernel:
    """Forward and backward of one generation of flash-attn, 2, 3 or 4; by default the best installed one for a device."""

    name = "fa"

    def __init__(self, generation: int | None = None) -> None:
        self.generation = generation

    def forward(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> tuple[Tensor, Tensor]:
        function = self._function(q.device, "forward")
        result = _call(function, q=dense(q), k=dense(k), v=dense(v), return_lse=True, **_common(segments, scale))
        # Releases differ in what else they return, and in where: the log-sum-exp is known by its shape.
        lse = next(part for part in result[1:] if isinstance(part, Tensor) and part.shape == (q.shape[1], q.shape[0]))
        return result[0], lse

    def backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Segments, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        function = self._function(q.device, "backward")
        dq, dk, dv = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v))
        lse = lse.contiguous()
        _call(
            function,
            dout=dense(grad_out),
            q=dense(q),
            k=dense(k),
            v=dense(v),
            out=out,
            lse=lse,
            softmax_lse=lse,
            dq=dq,
            dk=dk,
            dv=dv,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_common(segments, scale),
        )
        return dq, dk, dv

    def _function(self, device: torch.device, direction: Literal["forward", "backward"]) -> Callable[..., Any]:
        generation = self.generation or _installed(device)[0]
        names = _NAMES[generation]
        return getattr(importlib.import_module(names.module), getattr(names, direction))


def _common(segments: Segments, scale: float) -> dict[str, Any]:
    return {
        "cu_seqlens_q": segments.cu_queries,
        "cu_seqlens_k": segments.cu_keys,
        "max_seqlen_q": segments.longest_queries,
        "max_seqlen_k": segments.longest_keys,
        "softmax_scale": scale,
        "causal": segments.causal,
        "is_causal": segments.causal,
        "dropout_p": 0.0,
        "softcap": 0.0,
        "return_softmax": False,
        "window_size": (-1, -1),
    }


def _call(function: Callable[..., Any], **offered: Any) -> Any:
    """Call with the parameters that the function has. Windows stay off in each release's way; unknown required ones are None."""
    # A function that torch.library wraps keeps its signature on the original.
    parameters = inspect.signature(getattr(function, "_init_fn", function)).parameters
    given: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name.startswith("window_size_"):
            # No window is None in generation 4 and -1 before.
            given[name] = None if parameter.default is None else -1
        elif name in offered:
            given[name] = offered[name]
        elif parameter.default is inspect.Parameter.empty:
            given[name] = None
    return function(**given)


def _installed(device: torch.device) -> Sequence[int]:
    """The installed generations that support a CUDA device, the fastest first."""
    major = torch.cuda.get_device_capability(device)[0]
    orders: dict[int, tuple[int, ...]] = {8: (2,), 9: (3, 4, 2)}
    order = orders.get(major, (4, 2))
    return [generation for generation in order if _found(_NAMES[generation].module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
