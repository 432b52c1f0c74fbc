"""What a clip looks like, as one vector: the interface of embedders, and one that needs no weights.

An embedder gives a vector for each frame; `pooled` makes the clip's of them (mean of unit vectors, then unit length; the
paper names no pooling). `Layout` finds copies: re-encoded, rescaled or slightly changed pictures lie near 1, most others well
below 0.5. It knows nothing of meaning; for that take `transformers` with the folder of a CLIP or SigLIP model. Imports no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from eagle_data.errors import EagleDataError

__all__ = ["Embedder", "Layout", "load_embedder", "pooled"]

_SIDE, _GRID, _COARSE, _ANGLES = 32, 8, 4, 8


class Embedder(Protocol):
    """What an embedder must offer.

    Attributes:
        name: changes whenever its vectors would: stored vectors of another name are not used.
    """

    name: str

    def picture_size(self, width: int, height: int) -> tuple[int, int]:
        """The ``(width, height)`` at which it wants the frames of a video of this size."""
        ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames, uint8 ``[n, height, width, 3]``, to float32 ``[n, dim]``; the lengths of the vectors do not matter."""
        ...


class Layout:
    """Brightness, colour and edge directions on coarse grids, each with its mean taken off; `dim` is 224."""

    name = "layout-1"

    def picture_size(self, width: int, height: int) -> tuple[int, int]:
        """Always 32 x 32 pixels."""
        return _SIDE, _SIDE

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames, uint8 ``[n, 32, 32, 3]``, to float32 ``[n, 224]``; zeros for a frame of one colour."""
        rgb = frames.astype(np.float32) / 255
        luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        chroma = rgb[..., [0, 2]] - luma[..., None]
        down, right = np.gradient(luma, axis=(1, 2))
        angle = (np.arctan2(down, right) % np.pi * (_ANGLES / np.pi)).astype(np.int64) % _ANGLES
        edges = np.hypot(down, right)[..., None] * (angle[..., None] == np.arange(_ANGLES))
        parts = (_cells(luma[..., None], _GRID), _cells(chroma, _COARSE), _cells(edges, _COARSE))
        return np.concatenate([_unit(part - part.mean(axis=1, keepdims=True)) for part in parts], axis=1)


def pooled(vectors: np.ndarray) -> np.ndarray:
    """One unit vector, float32 ``[dim]``, of the vectors of a clip's frames, ``[n, dim]``.

    Raises EagleDataError where they say nothing: not finite, or all zero.
    """
    if not np.isfinite(vectors).all():
        raise EagleDataError("the embedder gave numbers that are not finite; check it.")
    mean = _unit(np.asarray(vectors, np.float32)).mean(axis=0, keepdims=True)
    if float(np.linalg.norm(mean)) < 1e-6:
        raise EagleDataError("the frames show nothing that the embedder can tell apart (one plain colour); leave it out.")
    return _unit(mean)[0]


def load_embedder(text: str, options: dict[str, Any]) -> Embedder:
    """The embedder that a recipe names: layout, transformers, or `module:factory` for one of your own.

    Raises EagleDataError for a name that leads nowhere or options that it does not take.
    """
    known = {
        "layout": f"{__name__}:Layout",
        "transformers": "eagle_data.curate.transformers_embedder:TransformersEmbedder",
    }
    module, _, factory = known.get(text, text).partition(":")
    if not factory:
        raise EagleDataError(f"there is no embedder {text!r}: write layout, transformers or your own as module:factory.")
    try:
        made: Any = getattr(import_module(module), factory)(**options)
    except (ImportError, AttributeError) as error:
        mend = "check the spelling and the installation"
        raise EagleDataError(f"the embedder {text!r} cannot be imported ({error}): {mend}.") from error
    except TypeError as error:
        raise EagleDataError(f"the embedder {text!r} does not take the options {options} ({error}).") from error
    if not all(hasattr(made, name) for name in ("__call__", "picture_size", "name")):
        raise EagleDataError(f"{text!r} gives no embedder: it needs name, picture_size and a call, as {__name__} says.")
    return made


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    """Means over a grid of `count` x `count` cells: ``[n, side, side, channels]`` to ``[n, count * count * channels]``."""
    n, side, _, channels = values.shape
    step = side // count
    return values.reshape(n, count, step, count, step, channels).mean(axis=(2, 4)).reshape(n, -1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 1e-6, lengths, np.inf)).astype(np.float32)
