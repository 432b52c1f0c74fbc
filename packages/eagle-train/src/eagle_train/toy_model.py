"""The quick start's model and tokenizer: Eagle 2.5's architecture at toy size, from random weights.

The tokenizer is a byte-level BPE of about a thousand entries in the `Qwen2Tokenizer` class, with the released special
tokens, single-digit splitting and chat template. Both are built, saved and loaded exactly as the full-size ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eagle_data.special_tokens import CHAT_TOKENS, END_OF_TEXT, IM_END, IMG_CONTEXT, SPECIAL_TOKENS
from eagle_data.strict import Strict
from pydantic import Field


class ToyModel(Strict):
    """Sizes of the toy Eagle; `tile_size` and `patch_size` in pixels."""

    tile_size: int = 32
    patch_size: int = 8
    max_tiles: int = 6
    vision_layers: int = 3
    vision_hidden: int = 96
    vision_heads: int = 4
    vision_mlp: int = 192
    layers: int = 4
    hidden: int = 128
    heads: int = 8
    kv_heads: int = 8
    mlp: int = 256
    rope_theta: float = 1e6
    initializer_range: float = Field(0.08, gt=0)
    vocabulary: int = Field(1000, ge=300)
    max_position_embeddings: int = 4096

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_size // self.patch_size // 2) ** 2


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A `Qwen2Tokenizer` whose BPE is trained on `texts`, with the chat and Eagle tokens added by name."""
    from tokenizers import Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    blank = Qwen2Tokenizer(vocab={}, merges=[])
    learner = Tokenizer(models.BPE())
    learner.normalizer = blank.backend_tokenizer.normalizer
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(CHAT_TOKENS) - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges)
    tokenizer.add_tokens(list(CHAT_TOKENS), special_tokens=True)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    tokenizer.eos_token = IM_END
    tokenizer.pad_token = END_OF_TEXT
    return tokenizer


def training_texts(corpus: Path) -> list[str]:
    """Texts for the tokenizer: the corpus' conversations, and the data descriptions that scikit-learn ships (English prose)."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

    texts = []
    for path in sorted(corpus.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[:2000]:
            texts += [turn["value"] for turn in json.loads(line)["conversations"]]
    loaders: tuple[Any, ...] = (load_digits, load_iris, load_wine, load_breast_cancer, load_diabetes)
    return texts + [str(load().DESCR) for load in loaders] * 20


def build_toy(config: ToyModel, texts: Iterable[str], folder: Path) -> None:
    """Write a randomly initialised toy checkpoint (config, weights, tokenizer, processor) to `folder`.

    The caller seeds torch.
    """
    from eagle_model import (
        Eagle2_5_VLConfig,
        Eagle2_5_VLForConditionalGeneration,
        Eagle2_5_VLImageProcessor,
        Eagle2_5_VLProcessor,
    )

    tokenizer = train_tokenizer(texts, config.vocabulary)
    model_config = Eagle2_5_VLConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": config.vision_hidden,
            "intermediate_size": config.vision_mlp,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "image_size": config.tile_size,
            "patch_size": config.patch_size,
            "vision_use_head": False,
        },
        text_config={
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden,
            "intermediate_size": config.mlp,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "initializer_range": config.initializer_range,
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.convert_tokens_to_ids(IM_END),
            "pad_token_id": tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        },
        select_layer=-1,
        force_image_size=config.tile_size,
        downsample_ratio=0.5,
        dynamic_image_size=True,
        use_thumbnail=True,
        min_dynamic_tiles=1,
        max_dynamic_tiles=config.max_tiles,
        image_token_index=tokenizer.convert_tokens_to_ids(IMG_CONTEXT),
    )
    model = Eagle2_5_VLForConditionalGeneration(model_config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(IM_END)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    image_processor = Eagle2_5_VLImageProcessor(
        size={"height": config.tile_size, "width": config.tile_size}, max_dynamic_tiles=config.max_tiles
    )
    processor = Eagle2_5_VLProcessor(image_processor=image_processor, tokenizer=tokenizer, tokens_per_tile=config.tokens_per_tile)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
