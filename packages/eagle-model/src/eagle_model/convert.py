"""An Eagle from parts: a SigLIP or SigLIP2 tower, a language model, and a fresh connector between them.

It promises the start of stage 1: tower and language model as they were (positions resampled where the tile size
changes), Eagle's tokens found by name, and a vocabulary that never gets fewer rows. It trains nothing; the command is in
`cli.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from eagle_model.configuration import TEXT_CONFIGS, Eagle2_5_VLConfig
from eagle_model.connector import build_connector
from eagle_model.modeling import Eagle2_5_VLForConditionalGeneration
from eagle_model.position_embedding import square_tile, tower_for_tile_size
from eagle_model.processing import Eagle2_5_VLProcessor
from eagle_model.tokens import add_special_tokens, token_id

_ROW_MULTIPLE = 64
"""Grown vocabularies are padded to whole multiples: matrix products are fast only there."""

_TOWERS = ("siglip", "siglip_vision_model")


@dataclass(frozen=True)
class EagleOptions:
    """What an Eagle has beyond its parts.

    tile_size: side of a tile in pixels, None keeps the tower's; select_layer, mlp_connector_layers, use_pixel_shuffle,
    downsample_ratio, min_dynamic_tiles, max_dynamic_tiles, use_thumbnail: as in `Eagle2_5_VLConfig`; seed: of the connector.
    """

    tile_size: int | None = None
    select_layer: int = -1
    mlp_connector_layers: int = 2
    use_pixel_shuffle: bool = True
    downsample_ratio: float = 0.5
    min_dynamic_tiles: int = 1
    max_dynamic_tiles: int = 12
    use_thumbnail: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: sizes before and after, tokens that were new to the tokenizer, and the id of `<IMG_CONTEXT>`."""

    tile_size: tuple[int, int]
    vocabulary_rows: tuple[int, int]
    new_tokens: tuple[str, ...]
    image_token_index: int
    tokens_per_tile: int


def assemble(
    tower: SiglipVisionModel, language_model: Any, tokenizer: Any, options: EagleOptions | None = None
) -> tuple[Eagle2_5_VLForConditionalGeneration, Eagle2_5_VLProcessor, Conversion]:
    """Put an Eagle together from loaded parts, whose tensors it takes over.

    Args:
        tower: SigLIP, with or without the pooling head.
        language_model: Qwen2, Qwen3 or Llama for causal language modelling. Grown where the tokenizer needs more rows.
        tokenizer: of the language model; gets Eagle's tokens.
        options: defaults are the released model's.

    Returns:
        The model in eval mode, its processor, and what was done. Rows of new tokens, in both embeddings, are the mean of
        the rows the tokenizer already named; every other row is unchanged. The connector has LayerNorm at its default
        and Linear weights from a normal distribution of `initializer_range`, in the type of the language model.

    Raises:
        ValueError: a language model of an unsupported kind, or a tile size that the tower's patches or the pixel shuffle do not
            divide.
    """
    options = options or EagleOptions()
    text_config = language_model.config
    if text_config.model_type not in TEXT_CONFIGS:
        raise ValueError(f"the language model is a {text_config.model_type!r}; supported: {', '.join(TEXT_CONFIGS)}")
    old_tile = square_tile(tower)
    tower = tower_for_tile_size(tower, options.tile_size or old_tile)
    rows = language_model.get_input_embeddings().weight.shape[0]
    new_tokens = _add_tokens(language_model, tokenizer)
    text_config.architectures = [TEXT_CONFIGS[text_config.model_type][0]]
    config = Eagle2_5_VLConfig(
        vision_config=tower.config,
        text_config=text_config,
        select_layer=options.select_layer,
        force_image_size=square_tile(tower),
        downsample_ratio=options.downsample_ratio,
        use_pixel_shuffle=options.use_pixel_shuffle,
        mlp_connector_layers=options.mlp_connector_layers,
        min_dynamic_tiles=options.min_dynamic_tiles,
        max_dynamic_tiles=options.max_dynamic_tiles,
        dynamic_image_size=True,
        use_thumbnail=options.use_thumbnail,
        image_token_index=token_id(tokenizer),
    )
    with torch.device("meta"):
        model = Eagle2_5_VLForConditionalGeneration(config)
    model.vision_model.vision_model = tower
    model.language_model = language_model
    model.mlp1 = _new_connector(config, language_model.dtype, options.seed)
    model.config.dtype = language_model.dtype
    model.generation_config = language_model.generation_config
    processor = Eagle2_5_VLProcessor.for_config(config, tokenizer)
    rows_now = language_model.get_input_embeddings().weight.shape[0]
    done = Conversion(
        (old_tile, config.tile_size), (rows, rows_now), new_tokens, config.image_token_index, config.num_image_token
    )
    return model.eval(), processor, done


def convert(
    vision: str | Path, text: str | Path, out: str | Path, options: EagleOptions | None = None, *, dtype: torch.dtype
) -> Conversion:
    """Build an Eagle folder from a SigLIP or SigLIP2 folder and a Qwen2, Qwen3 or Llama folder.

    `dtype` is that of all saved weights. Raises ValueError for a tower of another kind, an incomplete checkpoint, or an `out`
    that exists and is not empty, and what `assemble` raises.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; choose another output")
    model, processor, done = assemble(
        load_tower(vision, dtype=dtype),
        AutoModelForCausalLM.from_pretrained(text, dtype=dtype),
        AutoTokenizer.from_pretrained(text),
        options,
    )
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return done


def load_tower(folder: str | Path, *, dtype: torch.dtype) -> SiglipVisionModel:
    """The vision tower of a SigLIP or SigLIP2 checkpoint, also where the file holds the text tower beside it.

    Raises ValueError for another kind of model (the `siglip2` of native resolutions among them) or missing weights.
    """
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in _TOWERS:
        raise ValueError(
            f"{folder} is a {kind!r} checkpoint; the tower must be a SigLIP of fixed resolution ({' or '.join(_TOWERS)}), "
            "such as google/siglip2-so400m-patch14-384"
        )
    loader: Any = SiglipVisionModel
    tower, info = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    missing = sorted(name for name in info["missing_keys"] if ".head." not in f".{name}")
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of the tower, first {missing[0]}; is the download complete?")
    if any(".head." in f".{name}" for name in info["missing_keys"]):
        return _without_head(tower)
    return tower


def _without_head(tower: SiglipVisionModel) -> SiglipVisionModel:
    """A head that the checkpoint lacks would be random: better none."""
    fields = {key: value for key, value in tower.config.to_dict().items() if not key.startswith("_")}
    config = type(tower.config)(**fields)
    config.vision_use_head = False
    bare = SiglipVisionModel(config)
    bare.load_state_dict({name: value for name, value in tower.state_dict().items() if not name.startswith("head.")}, assign=True)
    return bare.train(tower.training)


def _add_tokens(language_model: Any, tokenizer: Any) -> tuple[str, ...]:
    """Add Eagle's tokens; grow both embeddings where needed and give the rows of new tokens a value (see `assemble`)."""
    known = sorted(set(tokenizer.get_vocab().values()))
    before = set(tokenizer.get_vocab())
    add_special_tokens(tokenizer)
    new = {name: index for name, index in tokenizer.get_vocab().items() if name not in before}
    if len(tokenizer) > language_model.get_input_embeddings().weight.shape[0]:
        language_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=_ROW_MULTIPLE, mean_resizing=False)
    if new:
        matrices = {id(part.weight): part.weight for part in _embeddings(language_model)}
        for weight in matrices.values():
            with torch.no_grad():
                named = torch.tensor([index for index in known if index < weight.shape[0]])
                weight[torch.tensor(sorted(new.values()))] = weight[named].float().mean(0).to(weight.dtype)
    return tuple(sorted(new, key=new.__getitem__))


def _embeddings(language_model: Any) -> list[Any]:
    return [language_model.get_input_embeddings(), language_model.get_output_embeddings()]


def _new_connector(config: Eagle2_5_VLConfig, dtype: torch.dtype, seed: int) -> torch.nn.Sequential:
    spread = float(getattr(config.text_config, "initializer_range", 0.02))
    generator = torch.Generator().manual_seed(seed)
    connector = build_connector(
        config.vision_config.hidden_size,
        config.text_config.hidden_size,
        factor=config.pixel_shuffle_factor,
        layers=config.mlp_connector_layers,
    )
    with torch.no_grad():
        for part in connector:
            if isinstance(part, torch.nn.Linear):
                part.weight.normal_(0.0, spread, generator=generator)
                part.bias.zero_()
    return connector.to(dtype)
