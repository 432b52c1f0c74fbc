"""The faster path to pixels: never more than one grey level from Pillow, and only on request."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from eagle_model import Eagle2_5_VLImageProcessor
from eagle_model.fast_pixels import resize
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SIDE = st.one_of(st.integers(1, 4), st.integers(1, 300))
LEVEL = 2 / 255
"""One grey level of 255 in pixels normalised to -1..1."""


def noise(width: int, height: int, seed: int, *, hard: bool) -> Image.Image:
    """The worst case: every value its own, or only black and white, so that bicubic overshoots everywhere."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(((values > 127) * 255 if hard else values).astype(np.uint8))


@settings(deadline=None, max_examples=100)
@given(SIDE, SIDE, SIDE, SIDE, st.booleans())
def test_resizing_is_within_one_level_of_pillow_for_any_sizes(width: int, height: int, to_width: int, to_height: int, hard: bool):
    image = noise(width, height, width * 1000 + height, hard=hard)
    expected = np.asarray(image.resize((to_width, to_height), Image.Resampling.BICUBIC)).astype(int)
    found = resize(image, to_width, to_height).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1


@pytest.mark.parametrize("size", [(97, 65), (640, 480), (500, 900), (64, 64), (1200, 130)])
@pytest.mark.parametrize("hard", [True, False])
def test_every_tile_is_within_one_level_and_most_values_are_equal(size: tuple[int, int], hard: bool):
    processor = Eagle2_5_VLImageProcessor(size=64)
    image = noise(*size, seed=3, hard=hard)
    slow, fast = (processor(image, resize_with=name)["pixel_values"] for name in ("pillow", "torch"))
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype
    difference = (fast - slow).abs()
    assert float(difference.max()) <= LEVEL * 1.0001
    assert float((difference > 1e-6).float().mean()) < 0.1


def test_frames_are_within_one_level_as_array_and_as_pictures():
    processor = Eagle2_5_VLImageProcessor(size=64)
    frames = np.stack([np.asarray(noise(150, 90, seed, hard=False)) for seed in range(3)])
    slow = np.concatenate(processor.frame_tiles(frames))
    for given_as in (frames, [Image.fromarray(frame) for frame in frames]):
        fast = np.concatenate(processor.frame_tiles(given_as, resize_with="torch"))
        assert fast.shape == slow.shape
        assert abs(fast - slow).max() <= LEVEL * 1.0001
    several = np.concatenate(processor.frame_tiles(frames, resize_with="torch", max_dynamic_tiles=4))
    assert abs(several - np.concatenate(processor.frame_tiles(frames, max_dynamic_tiles=4))).max() <= LEVEL * 1.0001


def test_the_default_is_pillow_and_only_another_choice_is_saved(tmp_path: Any):
    image = noise(97, 65, seed=1, hard=True)
    default = Eagle2_5_VLImageProcessor(size=32)
    assert torch.equal(default(image)["pixel_values"], default(image, resize_with="pillow")["pixel_values"])
    default.save_pretrained(tmp_path / "default")
    assert "resize_with" not in json.loads((tmp_path / "default" / "preprocessor_config.json").read_text())
    chosen = Eagle2_5_VLImageProcessor(size=32, resize_with="torch")
    chosen.save_pretrained(tmp_path / "chosen")
    again = Eagle2_5_VLImageProcessor.from_pretrained(tmp_path / "chosen")
    assert again.resize_with == "torch"
    assert torch.equal(again(image)["pixel_values"], chosen(image)["pixel_values"])
    assert not torch.equal(chosen(image)["pixel_values"], default(image)["pixel_values"])


def test_an_unknown_way_to_resize_is_an_error():
    with pytest.raises(ValueError, match="resize_with is 'opencv'"):
        Eagle2_5_VLImageProcessor(resize_with="opencv")
    with pytest.raises(ValueError, match="resize_with is 'opencv'"):
        Eagle2_5_VLImageProcessor(size=32)(noise(40, 40, 0, hard=False), resize_with="opencv")
