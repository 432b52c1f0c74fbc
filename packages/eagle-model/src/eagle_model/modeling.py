"""Eagle 2.5: a SigLIP tower, a connector and a language model, for inference and for packed training alike.

It promises the released state-dict names, the released `generate` contract, and that a packed batch is computed as if
each document were alone. It chooses no attention, kernels or parallelism by itself: attention comes through
transformers' interfaces, `eagle-kernels` through its public functions. Generation is `generation.py`, prompts and
pixels are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.generic import ModelOutput

from eagle_model.attention import packed_attention
from eagle_model.configuration import Eagle2_5_VLConfig
from eagle_model.connector import build_connector, shuffle_patches
from eagle_model.generation import EagleGenerationMixin
from eagle_model.loss import weighted_cross_entropy
from eagle_model.released_lora import refuse_wrapped
from eagle_model.vision import SiglipTower

_HEAD_KEYS = r"vision_model\.vision_model\.head\."


@dataclass
class Eagle2_5_VLOutput(ModelOutput):
    """Result of `forward`.

    loss: scalar; logits: [batch, kept tokens, vocabulary], None on the packed path; image_hidden_states: the features
    that were scattered, [tiles, tokens per tile, hidden], None without pictures. The rest is as in transformers.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class Eagle2_5_VLForConditionalGeneration(PreTrainedModel, EagleGenerationMixin):
    """Eagle 2.5 with a language-model head (upstream section 1.3).

    Attributes: `vision_model` (`SiglipTower`), `mlp1` (connector), `language_model` (Qwen2, Qwen3 or Llama for causal
    language modelling). Raises ValueError where the config describes a model that cannot be built.
    """

    config: Eagle2_5_VLConfig
    config_class = Eagle2_5_VLConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The pooling head is never used: checkpoints with and without it are equally whole.
    _keys_to_ignore_on_load_missing = [_HEAD_KEYS]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [_HEAD_KEYS]  # noqa: RUF012

    def __init__(self, config: Eagle2_5_VLConfig):
        super().__init__(config)
        vision_config, text_config = config.vision_config, config.text_config
        # Built from the very config objects, so that set_attn_implementation and resize_token_embeddings reach both.
        self.vision_model = SiglipTower(vision_config, tile_size=config.tile_size)
        self.mlp1 = build_connector(
            vision_config.hidden_size,
            text_config.hidden_size,
            factor=config.pixel_shuffle_factor,
            layers=config.mlp_connector_layers,
        )
        language_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text_config)]
        self.language_model = language_class(text_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers. ValueError where LoRA adapters lie inside the weights, which would else load as random ones."""
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        refuse_wrapped(info["unexpected_keys"], pretrained_model_name_or_path)
        return (model, info) if with_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def unused_parameter_names(self) -> tuple[str, ...]:
        """Parameters that no output depends on (pooling head, layers past `select_layer`): freeze them for training."""
        names = self.vision_model.unused_parameter_names(self.config.select_layer)
        return tuple(f"vision_model.{name}" for name in names)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode tiles.

        Args:
            pixel_values: [tiles, 3, side, side], normalised, any float type.

        Returns:
            [tiles, tokens per tile, hidden of the language model], ready for `visual_features`.
        """
        side = self.config.tile_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[2:]) != (side, side):
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes [tiles, 3, {side}, {side}], which its own "
                "processor makes"
            )
        features = self.vision_model(pixel_values, self.config.select_layer)
        if self.config.use_pixel_shuffle:
            features = shuffle_patches(features, self.config.pixel_shuffle_factor)
        if self.config.mlp_checkpoint and self.training and torch.is_grad_enabled():
            output = checkpoint(self.mlp1, features, use_reentrant=False)
            assert isinstance(output, torch.Tensor)
            return output
        return self.mlp1(features)

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The released name of `get_image_features`."""
        return self.get_image_features(pixel_values)

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        visual_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token embeddings with image features in place of the context tokens, and those features.

        Args:
            input_ids: [batch, tokens].
            pixel_values: [tiles, 3, side, side]; or
            visual_features: [tiles, tokens per tile, hidden], already encoded.
            image_flags: [tiles], 0 for a dummy tile whose features are dropped.

        Tiles fill context tokens in order, row by row of the batch. Raises ValueError, with both counts, where tokens
        and features do not match: a prompt cut through an image would otherwise show it shifted.
        """
        if pixel_values is not None and visual_features is not None:
            raise ValueError("give pixel_values or visual_features, not both")
        embeddings = self.get_input_embeddings()(input_ids)
        context = input_ids == self.config.image_token_index
        features = visual_features
        if features is None and pixel_values is not None and pixel_values.shape[0] > 0:
            features = self.get_image_features(pixel_values)
        kept = features
        if features is not None and image_flags is not None:
            if image_flags.numel() != features.shape[0]:
                raise ValueError(
                    f"image_flags has {image_flags.numel()} entries for {features.shape[0]} tiles; give one per tile"
                )
            kept = features[image_flags.reshape(-1).to(features.device) != 0]
        rows = 0 if kept is None else kept.shape[0] * kept.shape[1]
        if torch.compiler.is_compiling():
            # Reading the count would break the graph: the device checks it, without the counts in the message.
            torch.ops.aten._assert_async.msg(context.sum() == rows, "image context tokens and image features differ in number")
        elif (wanted := int(context.sum())) != rows:
            tiles = 0 if kept is None else kept.shape[0]
            raise ValueError(
                f"the batch has {wanted} image context tokens (id {self.config.image_token_index}) but {rows} image features "
                f"from {tiles} tiles of {self.config.num_image_token}; make text and pixels with the same processor, and neither "
                "truncate the prompt nor reorder the tiles"
            )
        if features is None or kept is None:
            return embeddings, None
        if rows:
            flat = kept.reshape(-1, kept.shape[-1]).to(device=embeddings.device, dtype=embeddings.dtype)
            embeddings = embeddings.masked_scatter(context.unsqueeze(-1), flat)
        elif self.training:
            # A text-only batch with a dummy tile: the tower must stay in the graph, or ranks wait for its gradients.
            embeddings = embeddings + 0.0 * features.sum().to(device=embeddings.device, dtype=embeddings.dtype)
        return embeddings, kept

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_flags: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        loss_weight: torch.Tensor | None = None,
        loss_rows: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        visual_features: torch.Tensor | None = None,
        place_features: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Eagle2_5_VLOutput | tuple[Any, ...]:
        """Run the model: scoring, padded training or packed training.

        Args:
            input_ids: int64 [batch, tokens]; exactly one of this and `inputs_embeds`.
            pixel_values: [tiles, 3, side, side]; not with `inputs_embeds`.
            attention_mask: [batch, tokens], 0 for padding. Not for packs.
            position_ids: [batch, tokens]; required for packs, where they restart at 0 in each document.
            image_flags: see `embed`.
            labels: int64 [batch, tokens], not shifted, -100 ignored: `loss` is the mean cross entropy as in transformers.
            shift_labels: int64, as many as tokens, already shifted within each document, -100 ignored: `loss` is the
                SUM over supervised rows of `loss_weight` times cross entropy. The caller divides by a normaliser that
                spans the whole optimiser step; upstream divides within the pack. No logits are made.
            loss_weight: float, as many as tokens; None weighs every row 1. Read with `shift_labels` only.
            loss_rows: int64 indices of the supervised rows of the flattened batch, if known on the host.
            cu_seqlens: int32 [documents + 1], best on the host: the batch is one packed row of documents that do not
                see one another. Use `attn_implementation="packed_sdpa"` or a flash attention.
            inputs_embeds: [batch, tokens, hidden], pictures already in place (`embed`).
            past_key_values: a transformers cache. Not for packs.
            use_cache: whether to fill one; off by default where a loss is asked for.
            logits_to_keep: make logits only for the last n tokens, or for these positions; 0 means all.
            visual_features: see `embed`; not with `inputs_embeds`.
            place_features: puts features of tiles into token embeddings [1, tokens, hidden], in place of `embed`'s own way. For
                context parallelism: tokens and tiles are one rank's share of a pack, `cu_seqlens` those of the whole pack,
                and the features of a tile go to the ranks that own its tokens (eagle-parallel's `scatter_vision`).
            return_dict: False returns a tuple.
            **kwargs: passed to the language model, e.g. `output_hidden_states`, or eagle-parallel's `cp_plan`.

        Raises:
            ValueError: contradictory arguments, or image tokens and features that do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if labels is not None and shift_labels is not None:
            raise ValueError("give labels (padded batches) or shift_labels (packed batches), not both")
        if labels is not None and cu_seqlens is not None:
            raise ValueError("labels would be shifted across the documents of a pack; give shift_labels, shifted within each")
        if shift_labels is None and (loss_weight is not None or loss_rows is not None):
            raise ValueError("loss_weight and loss_rows belong to shift_labels, which are missing")
        kwargs.pop("image_sizes", None)  # comes with the processor's output; the model does not need it
        image_features = None
        no_pictures = pixel_values is None and visual_features is None
        # transformers compiles decoding steps only, and reading the length of a static cache would break the graph.
        decoding = past_key_values is not None and (torch.compiler.is_compiling() or past_key_values.get_seq_length() > 0)
        if input_ids is not None and no_pictures and decoding:
            # A generated context token is a token like any other, there is no picture to put in its place.
            inputs_embeds = self.get_input_embeddings()(input_ids)
        elif input_ids is not None and place_features is not None:
            image_features = visual_features if pixel_values is None else self.get_image_features(pixel_values)
            if image_features is None or image_flags is not None:
                raise ValueError("place_features takes the pixel_values or visual_features of real tiles, and no image_flags")
            inputs_embeds = place_features(self.get_input_embeddings()(input_ids), image_features)
        elif input_ids is not None:
            inputs_embeds, image_features = self.embed(input_ids, pixel_values, image_flags, visual_features)
        elif pixel_values is not None or visual_features is not None:
            raise ValueError("inputs_embeds hides where images belong; give input_ids with the pixels, or call embed() first")
        assert inputs_embeds is not None

        if cu_seqlens is not None:
            attention_mask, packed = self._packed_arguments(
                inputs_embeds, cu_seqlens, attention_mask, position_ids, past_key_values
            )
            kwargs.update(packed)
        if use_cache is None and (cu_seqlens is not None or labels is not None or shift_labels is not None):
            use_cache = False
        loss_kwargs = {"num_items_in_batch": kwargs.pop("num_items_in_batch")} if "num_items_in_batch" in kwargs else {}

        outputs = self.language_model.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        head = self.get_output_embeddings()
        loss = logits = None
        if shift_labels is not None:
            loss = weighted_cross_entropy(
                hidden.flatten(0, 1),
                head.get_parameter("weight"),
                shift_labels.reshape(-1),
                loss_weight=None if loss_weight is None else loss_weight.reshape(-1),
                loss_rows=loss_rows,
            )
        elif labels is not None:
            logits = head(hidden)
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **loss_kwargs)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = head(hidden[:, keep, :])

        result = Eagle2_5_VLOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )
        as_dict = return_dict if return_dict is not None else getattr(self.config, "return_dict", True)
        return result if as_dict else result.to_tuple()

    def _packed_arguments(
        self,
        inputs_embeds: torch.Tensor,
        cu_seqlens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        if inputs_embeds.shape[0] != 1:
            raise ValueError(f"cu_seqlens describes one packed row, but the batch has {inputs_embeds.shape[0]} rows")
        if attention_mask is not None or past_key_values is not None:
            raise ValueError("a packed batch takes neither attention_mask nor past_key_values; cu_seqlens says it all")
        if position_ids is None:
            raise ValueError("a packed batch needs position_ids that restart at 0 in each document; the collator writes them")
        text_config = self.language_model.config
        if "sliding_attention" in (getattr(text_config, "layer_types", None) or ()):
            raise ValueError("packed batches support full attention only; set text_config.use_sliding_window to false")
        packed = packed_attention(
            text_config._attn_implementation,
            cu_seqlens,
            tokens=inputs_embeds.shape[1],
            device=inputs_embeds.device,
            dtype=inputs_embeds.dtype,
        )
        return packed.attention_mask, packed.kwargs
