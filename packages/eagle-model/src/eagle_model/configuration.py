"""The configuration of Eagle 2.5, readable from and writable for the released checkpoint.

It promises the released keys and defaults (upstream section 1.1), the aliases of sibling checkpoints, and that keys it
does not know survive a round trip. Every size the rest of the package needs (tile side, tokens per tile) is derived
here and nowhere else. It builds no modules and reads no tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config, SiglipVisionConfig

TEXT_CONFIGS: dict[str, tuple[str, type[PreTrainedConfig]]] = {
    "qwen2": ("Qwen2ForCausalLM", Qwen2Config),
    "qwen3": ("Qwen3ForCausalLM", Qwen3Config),
    "llama": ("LlamaForCausalLM", LlamaConfig),
}
"""model_type of a text config to its architecture name and its class."""

VISION_CONFIGS: dict[str, type[PreTrainedConfig]] = {"siglip_vision_model": SiglipVisionConfig}

_TILE_ALIASES = {"min_dynamic_patch": "min_dynamic_tiles", "max_dynamic_patch": "max_dynamic_tiles"}

# Written by the released code from private attributes. Read back they would force flash-attention 2 on every machine.
_PRIVATE_KEYS = ("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal")
_SUB_CONFIG_PRIVATE_KEYS = (*_PRIVATE_KEYS, "attn_implementation")


class Eagle2_5_VLConfig(PreTrainedConfig):
    """Configuration of `Eagle2_5_VLForConditionalGeneration`.

    Args:
        vision_config: dict or config of the tower; only `siglip_vision_model`.
        text_config: dict or config of the language model; qwen2, qwen3 or llama, found by `model_type` or by
            `architectures[0]`. The legacy key `llm_config` overrides it.
        select_layer: which hidden state of the tower is used: -1 is the last one after the final layer norm, any
            other index counts hidden states without that norm, 0 being the patch embeddings (section 1.4).
        force_image_size: side of a tile in pixels; None means `vision_config.image_size`.
        downsample_ratio: pixel-shuffle factor; the reciprocal must be a whole number.
        use_pixel_shuffle, mlp_connector_layers: shape of the connector `mlp1`.
        mlp_checkpoint: recompute the connector in the backward pass.
        image_token_index: id of `<IMG_CONTEXT>` in the tokenizer at hand.
        min_dynamic_tiles, max_dynamic_tiles, dynamic_image_size, use_thumbnail, pad2square, template, loss_version,
            use_backbone_lora, use_llm_lora: kept for the processors and trainers that read them.

    Raises:
        ValueError: a sub-config of an unsupported kind, or a connector shape that cannot be built.
    """

    model_type = "eagle_2_5_vl"
    is_composition = True
    # Which of several tower or language model classes applies is known only per instance, so the types here are the
    # common base; transformers reads the keys of this mapping.
    sub_configs = {"vision_config": PreTrainedConfig, "text_config": PreTrainedConfig}  # noqa: RUF012  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    attribute_map = {**_TILE_ALIASES, "image_token_id": "image_token_index"}  # noqa: RUF012

    # Dicts or None when given; from __post_init__ on always a SiglipVisionConfig and a config of TEXT_CONFIGS.
    vision_config: Any = None
    text_config: Any = None
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    pad2square: bool = False
    select_layer: int = -4
    force_image_size: int | None = None
    downsample_ratio: float = 0.5
    template: str | None = None
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    loss_version: str = "v1"
    min_dynamic_tiles: int = 1
    max_dynamic_tiles: int = 6
    mlp_checkpoint: bool = False
    image_token_index: int = 151667
    use_pixel_shuffle: bool = True
    mlp_connector_layers: int = 2
    tie_word_embeddings: bool = False

    if TYPE_CHECKING:
        # Unknown keys are kept, which the constructor that transformers generates does not say.
        def __init__(self, **kwargs: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        legacy_text = kwargs.pop("llm_config", None)
        for key in _PRIVATE_KEYS:
            kwargs.pop(key, None)
        for alias, name in _TILE_ALIASES.items():
            value = kwargs.pop(alias, None)
            # A file that holds both spellings means the newer one, which is then no longer at its default.
            if value is not None and getattr(self, name) == getattr(type(self), name):
                setattr(self, name, value)
        self.vision_config = _vision_config(self.vision_config)
        self.text_config = _text_config(legacy_text if legacy_text is not None else self.text_config)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self._check_connector()

    def _check_connector(self) -> None:
        if self.mlp_connector_layers not in (1, 2):
            raise ValueError(f"mlp_connector_layers is {self.mlp_connector_layers}; only 1 and 2 exist")
        if getattr(self, "ps_version", "v2") == "v1":
            raise ValueError("ps_version 'v1' orders pixel-shuffle channels differently; only 'v2' checkpoints are supported")
        if self.use_pixel_shuffle:
            factor = self.pixel_shuffle_factor
            if abs(factor * self.downsample_ratio - 1.0) > 1e-6:
                raise ValueError(f"downsample_ratio {self.downsample_ratio} is not 1/n for a whole n; 0.5 is the released value")
            side = self.tile_size // self.patch_size
            if side % factor:
                raise ValueError(
                    f"a tile of {self.tile_size} pixels has {side} x {side} patches of {self.patch_size}, which {factor} does "
                    "not divide; choose another force_image_size or downsample_ratio"
                )

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return int(self.force_image_size or self.vision_config.image_size)

    @property
    def patch_size(self) -> int:
        """Side of a ViT patch in pixels."""
        return int(self.vision_config.patch_size)

    @property
    def pixel_shuffle_factor(self) -> int:
        """How many patches per side become one token; 1 without pixel shuffle."""
        return round(1 / self.downsample_ratio) if self.use_pixel_shuffle else 1

    @property
    def num_image_token(self) -> int:
        """Context tokens per tile (256 for 448/14 and 512/16 with the released factor)."""
        return (self.tile_size // self.patch_size // self.pixel_shuffle_factor) ** 2

    def to_diff_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes.

        Unlike the base class it keeps every key of this class and of the sub-configs even at its default, with the
        keys by which the released code picks classes (`model_type`, `architectures`) and the `torch_dtype`, `rope_theta` and
        `rope_scaling` that transformers before 5 reads: defaults differ between transformers versions, a saved
        checkpoint must not.
        """
        output = super().to_diff_dict()
        full = self.to_dict()
        for key in _OWN_KEYS:
            output[key] = full[key]
        if "dtype" in output:
            output["torch_dtype"] = output["dtype"]
        common = PreTrainedConfig().to_dict()
        for key in self.sub_configs:
            sub = {name: value for name, value in full[key].items() if name not in common or value != common[name]}
            sub["model_type"] = full[key]["model_type"]
            rope = sub.get("rope_parameters")
            if isinstance(rope, dict) and "rope_theta" in rope:
                sub["rope_theta"] = rope["rope_theta"]
                scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
                if scaling.get("rope_type", "default") != "default":
                    sub["rope_scaling"] = scaling
            output[key] = sub
        return output


_OWN_KEYS = tuple(
    key for key in Eagle2_5_VLConfig.__annotations__ if key not in ("vision_config", "text_config") and not key.startswith("_")
)


def _vision_config(value: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        if value.model_type not in VISION_CONFIGS:
            raise ValueError(_unsupported("vision_config", value.model_type, VISION_CONFIGS))
        return value
    fields = _public(value or {})
    model_type = fields.get("model_type", "siglip_vision_model")
    if model_type not in VISION_CONFIGS:
        raise ValueError(_unsupported("vision_config", model_type, VISION_CONFIGS))
    return VISION_CONFIGS[model_type](**fields)


def _text_config(value: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        if value.model_type not in TEXT_CONFIGS:
            raise ValueError(_unsupported("text_config", value.model_type, TEXT_CONFIGS))
        config = value
    else:
        fields = _public(value or {"architectures": ["Qwen2ForCausalLM"]})
        by_architecture = {architecture: name for name, (architecture, _) in TEXT_CONFIGS.items()}
        architecture = (fields.get("architectures") or [None])[0]
        model_type = fields.get("model_type") or by_architecture.get(str(architecture))
        if model_type not in TEXT_CONFIGS:
            raise ValueError(_unsupported("text_config", model_type or architecture, TEXT_CONFIGS))
        config = TEXT_CONFIGS[model_type][1](**fields)
    if not config.architectures:
        config.architectures = [TEXT_CONFIGS[config.model_type][0]]
    return config


def _public(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in _SUB_CONFIG_PRIVATE_KEYS}


def _unsupported(key: str, found: object, known: dict[str, Any]) -> str:
    return f"{key} is of kind {found!r}, which Eagle 2.5 here cannot build; supported: {', '.join(known)}"
