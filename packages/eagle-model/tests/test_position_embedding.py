"""Positions of the tower for another tile size."""

from __future__ import annotations

import pytest
import torch
from eagle_model.position_embedding import resize_position_embedding, tower_for_tile_size
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SiglipVisionConfig, SiglipVisionModel


def tower(size: int = 32) -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=size, patch_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return SiglipVisionModel(config).eval()


@pytest.mark.parametrize("side", [2, 3, 7, 8])
def test_resized_positions_equal_what_siglip_interpolates_itself(side: int):
    model = tower()
    weight = model.embeddings.position_embedding.weight
    patches = torch.zeros(1, side * side, 16)
    expected = model.embeddings.interpolate_pos_encoding(patches, side * 8, side * 8)[0]
    torch.testing.assert_close(resize_position_embedding(weight, side), expected, rtol=0, atol=1e-6)


def test_the_same_grid_is_returned_as_it_is():
    weight = torch.randn(16, 5, dtype=torch.bfloat16)
    assert resize_position_embedding(weight, 4) is weight


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 12), st.floats(-2, 2, width=32))
def test_positions_that_are_all_alike_stay_alike(old: int, new: int, value: float):
    resized = resize_position_embedding(torch.full((old * old, 3), value, dtype=torch.float64), new)
    assert resized.shape == (new * new, 3)
    torch.testing.assert_close(resized, torch.full_like(resized, value))


def test_a_resized_tower_differs_in_its_positions_only_and_runs_at_the_new_size():
    small = tower()
    large = tower_for_tile_size(small, 64)
    assert (large.config.image_size, small.config.image_size) == (64, 32)
    before, after = small.state_dict(), large.state_dict()
    assert set(before) == set(after)
    changed = [name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])]
    assert changed == ["embeddings.position_embedding.weight"]
    pixels = torch.randn(2, 3, 64, 64)
    expected = small(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(large(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert tower_for_tile_size(small, 32) is small


def test_grids_that_do_not_exist_are_errors():
    with pytest.raises(ValueError, match="no square grid"):
        resize_position_embedding(torch.zeros(6, 2), 3)
    with pytest.raises(ValueError, match="at least 1"):
        resize_position_embedding(torch.zeros(4, 2), 0)
    with pytest.raises(ValueError, match="tile of 60 pixels"):
        tower_for_tile_size(tower(), 60)
