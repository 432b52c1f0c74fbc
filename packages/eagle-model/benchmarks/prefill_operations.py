"""How many floating-point operations a prefill of Eagle 2.5 takes, by part.

It promises matrix products and attention only, a multiply-add as two operations, causal attention as the half that must be
computed. It runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eagle_model.vision import layers_used


@dataclass(frozen=True)
class PrefillOperations:
    """Operations by part: tower, connector, linear layers of the language model, its attention, and one row of the head."""

    tower: int
    connector: int
    language_linear: int
    language_attention: int
    head: int

    @property
    def total(self) -> int:
        return self.tower + self.connector + self.language_linear + self.language_attention + self.head


def prefill_operations(config: Any, *, tiles: int, tokens: int) -> PrefillOperations:
    """Operations to encode `tiles` and prefill `tokens` (context tokens included) up to the logits of the last one."""
    vision, text = config.vision_config, config.text_config
    patches = (config.tile_size // config.patch_size) ** 2
    width, layers = vision.hidden_size, layers_used(vision.num_hidden_layers, config.select_layer)[0]
    patch_embedding = 2 * patches * 3 * config.patch_size**2 * width
    block = 2 * patches * (4 * width * width + 2 * width * vision.intermediate_size) + 4 * patches * patches * width
    tower = tiles * (patch_embedding + layers * block)

    hidden = text.hidden_size
    folded = width * config.pixel_shuffle_factor**2
    connector = (
        2 * tiles * config.num_image_token * (folded * hidden + (hidden * hidden if config.mlp_connector_layers == 2 else 0))
    )

    head_dim = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    per_layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * text.intermediate_size
    linear = 2 * tokens * text.num_hidden_layers * per_layer
    pairs = tokens * (tokens + 1) // 2
    attention = 4 * pairs * queries * text.num_hidden_layers
    return PrefillOperations(tower, connector, linear, attention, 2 * hidden * text.vocab_size)
