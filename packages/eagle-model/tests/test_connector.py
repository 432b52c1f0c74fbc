"""Pixel shuffle and the connector: channel order, shapes and parameter names."""

from __future__ import annotations

import pytest
import torch
from eagle_model.connector import build_connector, pixel_shuffle, shuffle_patches
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_channels_are_ordered_by_row_offset_column_offset_channel(
    tiles: int, rows: int, columns: int, factor: int, channels: int
):
    features = torch.arange(tiles * rows * factor * columns * factor * channels, dtype=torch.float64)
    features = features.reshape(tiles, rows * factor, columns * factor, channels)
    shuffled = pixel_shuffle(features, factor)
    assert shuffled.shape == (tiles, rows, columns, factor * factor * channels)
    for row in range(rows):
        for column in range(columns):
            block = features[:, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            patches = [block[:, dr, dc] for dr in range(factor) for dc in range(factor)]
            assert torch.equal(shuffled[:, row, column], torch.cat(patches, dim=-1))


def test_flat_patches_are_read_row_by_row():
    features = torch.arange(16.0).reshape(1, 16, 1)
    assert shuffle_patches(features, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_a_grid_that_does_not_fold_is_an_error():
    with pytest.raises(ValueError, match="3 x 4"):
        pixel_shuffle(torch.zeros(1, 3, 4, 2), 2)
    with pytest.raises(ValueError, match="no square grid"):
        shuffle_patches(torch.zeros(1, 12, 2), 2)


@pytest.mark.parametrize(
    ("factor", "layers", "names"),
    [
        (2, 2, {"0.weight": (32,), "0.bias": (32,), "1.weight": (6, 32), "1.bias": (6,), "3.weight": (6, 6), "3.bias": (6,)}),
        (2, 1, {"0.weight": (6, 32), "0.bias": (6,)}),
        (1, 1, {"0.weight": (6, 8), "0.bias": (6,)}),
        (1, 2, {"0.weight": (8,), "0.bias": (8,), "1.weight": (6, 8), "1.bias": (6,), "3.weight": (6, 6), "3.bias": (6,)}),
    ],
)
def test_every_shape_of_the_connector_has_the_released_names(factor: int, layers: int, names: dict[str, tuple[int, ...]]):
    connector = build_connector(8, 6, factor=factor, layers=layers)
    assert {name: tuple(value.shape) for name, value in connector.state_dict().items()} == names
    assert connector(torch.zeros(2, 5, factor * factor * 8)).shape == (2, 5, 6)
