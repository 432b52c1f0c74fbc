"""The vision tower: tiles in, patch features of the selected layer out.

It promises the released state-dict names (`vision_model.vision_model.…`, upstream section 1.3), whatever transformers
calls its modules, and runs only the layers whose output is used: never the pooling head. Pixel shuffle and the
connector are in `connector.py`.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, SiglipVisionConfig, SiglipVisionModel


class SiglipTower(nn.Module):
    """SigLIP under the name the released checkpoint has: its one child is `vision_model`.

    transformers 5 dropped the inner `vision_model` level of `SiglipVisionModel`; this module puts it back, so no key
    has to be renamed on load or save.
    """

    def __init__(self, config: PreTrainedConfig, *, tile_size: int):
        super().__init__()
        if not isinstance(config, SiglipVisionConfig):
            raise ValueError(f"the tower is built from a siglip_vision_model config, not from {config.model_type!r}")
        if tile_size != config.image_size:
            raise ValueError(
                f"force_image_size is {tile_size} but the tower has positions for tiles of {config.image_size} pixels; resize "
                "the position embeddings and set vision_config.image_size, or leave force_image_size unset"
            )
        self.config = config
        self.vision_model = SiglipVisionModel(config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the patch embedding's weight, to which pixels are cast."""
        return self.vision_model.embeddings.patch_embedding.weight.dtype

    def forward(self, pixel_values: torch.Tensor, select_layer: int = -1) -> torch.Tensor:
        """Features of every patch.

        Args:
            pixel_values: [tiles, 3, side, side], any float type.
            select_layer: see `layers_used`.

        Returns:
            [tiles, patches, hidden] in the tower's type, patches in row-major order.
        """
        layers, normed = layers_used(self.config.num_hidden_layers, select_layer)
        hidden = self.vision_model.embeddings(pixel_values.to(self.dtype))
        for layer in self.vision_model.encoder.layers[:layers]:
            output = layer(hidden, None)
            hidden = output[0] if isinstance(output, tuple) else output
        return self.vision_model.post_layernorm(hidden) if normed else hidden

    def unused_parameter_names(self, select_layer: int) -> tuple[str, ...]:
        """Names of parameters that `forward` never reads: the pooling head, and layers past the selected one."""
        layers, normed = layers_used(self.config.num_hidden_layers, select_layer)
        prefixes = ["vision_model.head."] + ([] if normed else ["vision_model.post_layernorm."])
        prefixes += [f"vision_model.encoder.layers.{i}." for i in range(layers, self.config.num_hidden_layers)]
        return tuple(name for name, _ in self.named_parameters() if name.startswith(tuple(prefixes)))


def layers_used(num_hidden_layers: int, select_layer: int) -> tuple[int, bool]:
    """How many layers run for `select_layer`, and whether the final norm follows (upstream section 1.4).

    -1 is the last hidden state after the norm. Any other index counts the hidden states before the norm, of which
    there are `num_hidden_layers + 1`, the first being the patch embeddings. Raises ValueError when out of range.
    """
    if select_layer == -1:
        return num_hidden_layers, True
    index = select_layer if select_layer >= 0 else num_hidden_layers + 1 + select_layer
    if not 0 <= index <= num_hidden_layers:
        raise ValueError(f"select_layer {select_layer} is outside a tower of {num_hidden_layers} layers")
    return index, False
