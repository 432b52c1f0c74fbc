"""A toy Eagle 2.5 checkpoint on disk, and small media: what every test of this package talks to.

Real classes and files throughout, 32-pixel tiles of 4 tokens, random weights without an end token, so answers are gibberish of
a known length. The tokenizer is a byte-level BPE trained here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eagle_model import (
    Eagle2_5_VLConfig,
    Eagle2_5_VLForConditionalGeneration,
    Eagle2_5_VLProcessor,
    add_special_tokens,
    token_id,
)
from eagle_serve import Checkpoint, load_checkpoint
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2Tokenizer

CORPUS = [
    "You are a helpful assistant. system user assistant Describe it. What is this? Read the digits. a word",
    "The first video sampled with 2.00 fps: Frame 1 sample at 0.00s: Frame 2 sample at 0.53s: The second video",
] * 3

CONTEXT_LENGTH = 640


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _tokenizer() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    model = json.loads(raw.to_str())["model"]
    merges: Any = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    built = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    built.eos_token = "<|im_end|>"
    add_special_tokens(built)
    return built


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint. Do not write into it; copy it."""
    tokenizer = _tokenizer()
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2}
    config = Eagle2_5_VLConfig(
        vision_config={"model_type": "siglip_vision_model", "num_attention_heads": 4, **vision},
        text_config={
            "architectures": ["Qwen2ForCausalLM"],
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "eos_token_id": None,
            "pad_token_id": None,
            **text,
        },
        image_token_index=token_id(tokenizer),
        select_layer=-1,
        max_dynamic_tiles=6,
        use_thumbnail=True,
    )
    torch.manual_seed(0)
    model = Eagle2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    model.save_pretrained(folder)
    Eagle2_5_VLProcessor.for_config(config, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_folder, device="cpu")


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes coloured noise of a width, a height and a seed, so that no two tiles are alike."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def media(picture: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wide.png (96 x 32), small.jpg (40 x 30), clip.mp4 (12 frames, 4 a second), loop.gif (6 frames), and two damaged files."""
    import av

    folder = tmp_path_factory.mktemp("media")
    picture(96, 32).save(folder / "wide.png")
    picture(40, 30, 1).save(folder / "small.jpg")
    frames = [picture(48, 32, seed) for seed in range(6)]
    frames[0].save(folder / "loop.gif", save_all=True, append_images=frames[1:], duration=250, loop=0)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for seed in range(12):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(64, 48, seed))))
        container.mux(stream.encode())
    (folder / "cut.png").write_bytes((folder / "wide.png").read_bytes()[:400])
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:300])
    return folder


class _Always(LogitsProcessor):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores = torch.full_like(scores, float("-inf"))
        scores[:, self.token] = 0
        return scores


@pytest.fixture(scope="session")
def endless(checkpoint: Checkpoint) -> LogitsProcessorList:
    """A logits processor under which the model says " a a a …", one piece per token, until it is stopped."""
    [token] = checkpoint.processor.tokenizer.encode(" a")
    return LogitsProcessorList([_Always(token)])
