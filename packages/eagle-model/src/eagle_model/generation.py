"""Generation under the released contract: only new tokens come back, and encoded pictures can be reused.

It promises that pictures are encoded once, at the prefill, whatever loop of transformers runs after it. Decoding
strategies, caches and stopping are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin

_PREFILL_ONLY = ("pixel_values", "image_flags", "visual_features")


class EagleGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model that has `embed` (see `Eagle2_5_VLForConditionalGeneration`)."""

    embed: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; pictures go in at the prefill only, or at every step when there is no cache."""
        pictures = {name: kwargs.pop(name, None) for name in _PREFILL_ONLY}
        kwargs.pop("image_sizes", None)
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if (is_first_iteration or not kwargs.get("use_cache", True)) and inputs.get("inputs_embeds") is None:
            inputs.update({name: value for name, value in pictures.items() if value is not None})
        return inputs

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]  # the released signature, section 1.8
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
        generation_config: Any = None,
        *,
        image_flags: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate, and return ONLY the new tokens, as the released code does (most of transformers repeats the prompt).

        Args:
            pixel_values: [tiles, 3, side, side].
            input_ids: [batch, tokens], left-padded where prompts differ in length.
            attention_mask: [batch, tokens].
            visual_features: output of `get_image_features`: reuses encoded pictures in later turns. With pixel_values as well,
                as the released code demands, the features are used and the pixels are not encoded.
            generation_config: a transformers GenerationConfig; None means the model's.
            image_flags: see `embed`.
            image_sizes: accepted because the processor returns it; not used.
            **kwargs: everything `GenerationMixin.generate` takes. Penalties that look at the prompt see new tokens only.

        Returns:
            int64 [batch, new tokens], or transformers' generate output when `return_dict_in_generate` is set.
        """
        if input_ids is None and (inputs := kwargs.pop("inputs", None)) is not None:
            input_ids = inputs
        if input_ids is None:
            if pixel_values is not None and not pixel_values.is_floating_point():
                raise TypeError(
                    "the first positional argument of generate is pixel_values, as in the released code; pass input_ids by name"
                )
            raise ValueError("generate needs input_ids")
        pixels = pixel_values if visual_features is None else None
        embeddings, _ = self.embed(input_ids, pixels, image_flags, visual_features)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            inputs_embeds=embeddings, attention_mask=attention_mask, generation_config=generation_config, **kwargs
        )
