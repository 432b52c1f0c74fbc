"""Open a checkpoint folder or hub id as model and processor, ready to answer.

It promises that what loads is a whole Eagle 2.5 whose processor fits its weights, or a CheckpointError that says what is
wrong with the folder. One device; no quantisation, no splitting over GPUs.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eagle_serve.errors import CheckpointError
from eagle_serve.folder import find_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        name: the path or hub id it came from.
        model: `Eagle2_5_VLForConditionalGeneration` in eval mode.
        processor: `Eagle2_5_VLProcessor`.
        busy: held while the model generates; answers to several sessions follow one another.
    """

    name: str
    model: Any
    processor: Any
    busy: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer together may have (`max_position_embeddings`)."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def video_fps(self) -> float:
        """Frames sampled per second of video: the rate this checkpoint was trained at, or the released 2."""
        return getattr(self.processor, "video_fps", None) or 2.0

    @property
    def max_tiles(self) -> int:
        """Most tiles of an image, thumbnail not counted, unless a prompt asks otherwise."""
        return int(self.processor.image_processor.max_dynamic_tiles)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def load_checkpoint(path: str | Path, *, device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Load through AutoModelForImageTextToText and AutoProcessor.

    Args:
        path: a folder as `save_pretrained` writes it, or a hub id such as `nvidia/Eagle-2.5-8B`.
        device: a torch device; `auto` is cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; `auto` is bfloat16 on cuda and float32 elsewhere.

    Raises:
        CheckpointError: nothing there, another model, missing weights, a processor that does not fit, or no such device.
    """
    name = find_checkpoint(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not known; choose among auto, {', '.join(_DTYPES)}")
    import eagle_model  # noqa: F401  # registers the classes
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "eagle_2_5_vl":
            raise CheckpointError(f"{name}: holds a model of type {config.model_type!r}, not an Eagle 2.5 (eagle_2_5_vl)")
        processor = AutoProcessor.from_pretrained(name)
        # pyright believes in one return value; with output_loading_info there are two.
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, config=config, dtype=_DTYPES[dtype], output_loading_info=True
        )
        model, info = loaded
        model = model.to(device).eval()
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{name}: cannot be loaded as an Eagle 2.5 checkpoint: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{name}: {len(missing)} weights are missing, the first {missing[0]}; save the checkpoint again")
    _check_fit(name, config, processor)
    return Checkpoint(str(path), model, processor)


def _check_fit(name: str, config: Any, processor: Any) -> None:
    pairs = {
        "id of <IMG_CONTEXT>": (processor.image_token_id, config.image_token_index),
        "tokens per tile": (processor.tokens_per_tile, config.num_image_token),
        "tile size": (processor.image_processor.tile_size, config.tile_size),
    }
    for what, (of_processor, of_model) in pairs.items():
        if of_processor != of_model:
            raise CheckpointError(
                f"{name}: {what} is {of_processor} in the processor's files but {of_model} in config.json; "
                "save both from the same run"
            )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
