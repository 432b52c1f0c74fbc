"""Rules of a checkpoint folder: the numbers that the model itself derives from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eagle_data.checkpoint_rules import rules_of_checkpoint
from eagle_data.dialect import TRAINING

RELEASED = {
    "vision_config": {"image_size": 448, "patch_size": 14},
    "downsample_ratio": 0.5,
    "max_dynamic_tiles": 12,
    "use_thumbnail": True,
}


def rules(folder: Path, config: Any, **options: Any):
    (folder / "config.json").write_text(json.dumps(config))
    return rules_of_checkpoint(folder, **options)


def test_the_released_config_gives_256_tokens_a_tile(tmp_path: Path):
    found = rules(tmp_path, RELEASED, fps=1.0, min_frames=4, dialect=TRAINING)
    assert (found.tile_size, found.tokens_per_tile, found.min_tiles, found.max_tiles) == (448, 256, 1, 12)
    assert (found.use_thumbnail, found.fps, found.min_frames, found.dialect) == (True, 1.0, 4, TRAINING)


@pytest.mark.parametrize(
    ("change", "tile", "tokens"),
    [
        ({"force_image_size": 224}, 224, 64),
        ({"vision_config": {"image_size": 512, "patch_size": 16}}, 512, 256),
        ({"use_pixel_shuffle": False}, 448, 1024),
        ({"downsample_ratio": 0.25}, 448, 64),
        ({"vision_config": {}}, 224, 49),
    ],
)
def test_tile_and_token_counts_follow_the_config(change: dict[str, Any], tile: int, tokens: int, tmp_path: Path):
    found = rules(tmp_path, {**RELEASED, **change})
    assert (found.tile_size, found.tokens_per_tile) == (tile, tokens)


def test_older_names_and_the_defaults_of_the_config_class_are_known(tmp_path: Path):
    found = rules(tmp_path, {"vision_config": RELEASED["vision_config"], "min_dynamic_patch": 2, "max_dynamic_patch": 9})
    assert (found.min_tiles, found.max_tiles, found.use_thumbnail) == (2, 9, False)
    assert rules(tmp_path, {"vision_config": {}}).max_tiles == 6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no vision_config"),
        ([], "has no vision_config"),
        ({**RELEASED, "downsample_ratio": 0.3}, "cannot be shuffled by downsample_ratio 0.3"),
        ({**RELEASED, "downsample_ratio": 0}, "cannot be shuffled"),
        ({**RELEASED, "force_image_size": 434}, "a tile of 434 px with patches of 14 px cannot be shuffled"),
        ({**RELEASED, "max_dynamic_tiles": "12"}, "max_dynamic_tiles is '12'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_with_file_and_key(config: Any, words: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json") as caught:
        rules(tmp_path, config)
    assert words in str(caught.value)


def test_a_folder_without_a_readable_config_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; give the folder"):
        rules_of_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        rules_of_checkpoint(tmp_path)
