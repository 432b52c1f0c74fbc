"""A toy Eagle 2.5 that every test builds from scratch: 32-pixel tiles, patches of 8, so 4 tokens per tile.

Real classes throughout; only the sizes are small. The tokenizer is a byte-level BPE trained here, in the Qwen2 class.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from eagle_model import (
    Eagle2_5_VLConfig,
    Eagle2_5_VLForConditionalGeneration,
    Eagle2_5_VLProcessor,
    add_special_tokens,
    token_id,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

CORPUS = [
    "You are a helpful assistant. system user assistant Describe it. What is this? Read the digits.",
    "The first video sampled with 2.00 fps: Frame 1 sample at 0.00s: Frame 2 sample at 0.53s: The second video",
    "<image 1> <image 2> 0 1 2 3 4 5 6 7 8 9 The eleventh 11th video shows a cat, a dog and a small red bird.",
] * 3

VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TEXT: dict[str, dict[str, Any]] = {
    architecture: {
        "architectures": [architecture],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    for architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
}
del TEXT["Qwen2ForCausalLM"]["head_dim"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(bare_tokenizer: Any) -> Any:
    built = copy.deepcopy(bare_tokenizer)
    add_special_tokens(built)
    return built


@pytest.fixture(scope="session")
def bare_tokenizer() -> Any:
    """A language model's tokenizer, as it was before Eagle. Copy it before changing it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    model = json.loads(raw.to_str())["model"]
    merges: Any = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    built = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    built.eos_token = "<|im_end|>"
    return built


@pytest.fixture(scope="session")
def make_config(tokenizer: Any) -> Any:
    """Build a toy config; `text` names the architecture, `vision` and keyword arguments override."""

    def make(
        text: str = "Qwen2ForCausalLM", vision: dict[str, Any] | None = None, text_options: Any = None, **kwargs: Any
    ) -> Eagle2_5_VLConfig:
        language = {**TEXT[text], "vocab_size": len(tokenizer) + 5, **(text_options or {})}
        language["eos_token_id"] = language["pad_token_id"] = None
        options = {"select_layer": -1, "max_dynamic_tiles": 12, "use_thumbnail": True, **kwargs}
        return Eagle2_5_VLConfig(
            vision_config={**VISION, **(vision or {})}, text_config=language, image_token_index=token_id(tokenizer), **options
        )

    return make


@pytest.fixture
def make_model(make_config: Any) -> Any:
    """Build a toy model with seeded weights large enough that every part of it matters, in float64 and eval mode."""

    def make(
        config: Eagle2_5_VLConfig | None = None, *, attention: str = "sdpa", dtype: torch.dtype = torch.float64, **kwargs: Any
    ) -> Eagle2_5_VLForConditionalGeneration:
        torch.manual_seed(0)
        model: Any = Eagle2_5_VLForConditionalGeneration(config if config is not None else make_config(**kwargs))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.2)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.05)
        model = model.to(dtype).eval()
        model.set_attn_implementation(attention)
        return model

    return make


@pytest.fixture(scope="session")
def recompute() -> Any:
    """Switch on gradient checkpointing by the name that the installed transformers wants."""

    def enable(model: Any, options: dict[str, Any] | None = None) -> None:
        method = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        method(options)

    return enable


@pytest.fixture(scope="session")
def processor(tokenizer: Any, make_config: Any) -> Eagle2_5_VLProcessor:
    return Eagle2_5_VLProcessor.for_config(make_config(), tokenizer)


@pytest.fixture(scope="session")
def released_processor(tokenizer: Any) -> Eagle2_5_VLProcessor:
    """The processor with the released sizes: 448-pixel tiles of 256 tokens."""
    from eagle_model import Eagle2_5_VLImageProcessor

    return Eagle2_5_VLProcessor(Eagle2_5_VLImageProcessor(), tokenizer)
