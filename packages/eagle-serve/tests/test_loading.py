"""Opening a checkpoint: what is whole loads, and each way of being wrong has its own line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from eagle_serve import Checkpoint, CheckpointError, load_checkpoint
from eagle_serve.folder import find_checkpoint


@pytest.fixture
def copy(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "copy"))


def _edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_saved_folder_loads_in_eval_mode_as_float32_on_the_cpu(checkpoint: Checkpoint):
    assert not checkpoint.model.training
    assert checkpoint.dtype == torch.float32
    assert checkpoint.device.type == "cpu"
    assert checkpoint.context_length == 640
    assert checkpoint.max_tiles == 6


def test_a_dtype_can_be_chosen(checkpoint_folder: Path):
    assert load_checkpoint(checkpoint_folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="float12"):
        load_checkpoint(checkpoint_folder, dtype="float12")


def test_a_missing_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("runs/typo", "./typo", "typo", str(tmp_path / "typo")):
        with pytest.raises(CheckpointError, match="no such folder"):
            find_checkpoint(path)


def test_a_hub_id_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("nvidia/Eagle-2.5-8B") == "nvidia/Eagle-2.5-8B"


def test_the_folder_of_a_run_names_the_checkpoint_inside_it(checkpoint_folder: Path):
    with pytest.raises(CheckpointError, match=rf"did you mean {checkpoint_folder}\?"):
        load_checkpoint(checkpoint_folder.parent)


def test_a_file_is_not_a_folder(checkpoint_folder: Path):
    with pytest.raises(CheckpointError, match="is a file"):
        load_checkpoint(checkpoint_folder / "config.json")


def test_another_model_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="'qwen2'"):
        load_checkpoint(tmp_path)


def test_a_config_that_is_not_json_is_an_error_of_the_checkpoint(copy: Path):
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="copy"):
        load_checkpoint(copy)


def test_absent_weights_are_an_error_of_the_checkpoint(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(copy)


def test_weights_missing_from_the_file_are_not_replaced_by_random_ones(copy: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["mlp1.0.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first mlp1\.0\.weight"):
        load_checkpoint(copy)


def test_a_processor_of_another_model_is_refused_with_both_values(copy: Path):
    _edit(copy / "processor_config.json", tokens_per_tile=16)
    with pytest.raises(CheckpointError, match="tokens per tile is 16 in the processor's files but 4 in config"):
        load_checkpoint(copy)


def test_an_unknown_device_is_an_error_of_the_checkpoint(checkpoint_folder: Path):
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(checkpoint_folder, device="warp:9")
