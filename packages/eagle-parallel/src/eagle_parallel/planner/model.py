"""Shapes of the language models that the planner can be asked about: by name, or from a Hugging Face `config.json`.

Dense decoder-only transformers with grouped-query attention and a gated MLP. A mixture of experts or an active sliding window is
refused: neither is in the cost model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class TransformerShape:
    """A decoder-only transformer; `vision_parameters` is the tower and connector, which every rank holds as well."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    vision_parameters: int = 0

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "intermediate", "query_heads", "kv_heads", "head_dim", "vocabulary"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: {field} must be a positive integer, got {value!r}.")
        if self.query_heads % self.kv_heads:
            raise ValueError(f"{self.name}: query_heads={self.query_heads} is not a multiple of kv_heads={self.kv_heads}.")

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrices of one layer: q, k, v, o and gate, up, down."""
        attention = 2 * self.hidden * self.head_dim * (self.query_heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights of matrices; norms and biases are left out (below 0.01 %)."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.vision_parameters


# Public configurations of the models' Hugging Face folders.
_QWEN25_7B = (28, 3584, 18944, 28, 4, 128, 152064)
MODELS: Mapping[str, TransformerShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            TransformerShape("qwen2.5-7b", *_QWEN25_7B),
            TransformerShape("qwen2.5-72b", 80, 8192, 29568, 64, 8, 128, 152064),
            TransformerShape("llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256),
            TransformerShape("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936),
            # Qwen2.5-7B with a SigLIP2-So400m tower (414 M) and an MLP connector from 4 x 1152 to 3584 (29 M).
            TransformerShape("eagle2.5-8b", *_QWEN25_7B, vision_parameters=443_000_000),
        )
    }
)


def load_model(name: str) -> TransformerShape:
    """A named shape, or that of a `config.json` (or of the folder that holds one).

    Raises:
        ValueError: the name is unknown and no such file exists, or the file describes a model that the cost model does not cover.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"model {name!r} is neither one of {', '.join(MODELS)} nor a config.json; pass one of them.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); pass a Hugging Face config.json.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a JSON {type(config).__name__}, expected an object; pass a Hugging Face config.json.")
    return from_config(config, str(path))


def from_config(config: Mapping[str, Any], name: str) -> TransformerShape:
    """The shape that a Hugging Face config describes; a vision-language config is read at its text part, without its tower."""
    part = next((config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), Mapping)), config)
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if (part.get(key) or 0) > 1:
            raise ValueError(f"{name}: {key}={part[key]}; a mixture of experts is not in the cost model.")
    if part.get("use_sliding_window") or (part.get("sliding_window") and "use_sliding_window" not in part):
        raise ValueError(f"{name}: sliding-window attention is not in the cost model.")
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [key for key in keys if not isinstance(part.get(key), int)]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; pass the config.json of a decoder-only transformer.")
    layers, hidden, intermediate, heads, vocabulary = (part[key] for key in keys)
    kv_heads = part.get("num_key_value_heads") or heads
    head_dim = part.get("head_dim") or hidden // heads
    tied = bool(part.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    return TransformerShape(name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied)
