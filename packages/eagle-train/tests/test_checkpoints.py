"""Checkpoints: whole or nothing, the newest, as many as wanted, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_train.checkpoints import list_checkpoints, load_state, load_weights, save_checkpoint
from eagle_train.errors import CheckpointError
from torch import nn


class Small(nn.Module):
    """A stand-in with the two methods that checkpoints use, and a tied parameter."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.tied = nn.Linear(width, width, bias=False)
        self.tied.weight = self.inner.weight

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file({"inner.weight": self.inner.weight.detach()}, folder / "model.safetensors")


def steps(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_the_newest_checkpoint_is_last_also_beyond_the_padding_of_its_name(tmp_path: Path):
    for step in (9, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, Small(), {"step": step}, keep=5)
    assert load_state(list_checkpoints(tmp_path)[-1])["step"] == 1_000_000


def test_only_the_newest_few_are_kept(tmp_path: Path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, Small(), {}, keep=2)
    assert steps(tmp_path) == ["step-000004", "step-000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000005"]


def test_a_half_written_checkpoint_is_ignored_and_cleared_by_the_next(tmp_path: Path):
    save_checkpoint(tmp_path, 1, Small(), {}, keep=2)
    Small().save_pretrained(tmp_path / ".step-000002.part")
    Small().save_pretrained(tmp_path / "step-000003")
    assert steps(tmp_path) == ["step-000001"]
    save_checkpoint(tmp_path, 3, Small(), {"whole": True}, keep=2)
    assert steps(tmp_path) == ["step-000001", "step-000003"]
    assert load_state(tmp_path / "step-000003") == {"whole": True}
    assert not (tmp_path / ".step-000002.part").exists()


def test_a_failing_write_leaves_the_checkpoint_before_it(tmp_path: Path):
    class Full(Small):
        def save_pretrained(self, folder: Path) -> None:
            super().save_pretrained(folder)
            raise OSError("no space left on device")

    save_checkpoint(tmp_path, 1, Small(), {}, keep=1)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 2, Full(), {}, keep=1)
    assert steps(tmp_path) == ["step-000001"]


def test_weights_come_back_as_saved_tied_ones_included(tmp_path: Path):
    saved, other = Small(), Small()
    load_weights(save_checkpoint(tmp_path, 1, saved, {}, keep=1), other)
    assert torch.equal(other.inner.weight, saved.inner.weight)
    assert other.tied.weight is other.inner.weight


def test_a_real_model_comes_back_bit_for_bit(tmp_path: Path, load_toy: Callable[[], Any]):
    model, other = load_toy(), load_toy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    load_weights(save_checkpoint(tmp_path, 1, model, {}, keep=1), other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ModuleDict({"inner": nn.Linear(3, 3)}), "lacks inner.bias"),
        (nn.ModuleDict({"outer": nn.Linear(3, 3)}), "lacks outer.weight and 1 more"),
        (nn.ModuleDict(), "has the unknown inner.weight"),
        (Small(width=4), "has another shape of inner.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_mend(tmp_path: Path, model: nn.Module, message: str):
    checkpoint = save_checkpoint(tmp_path, 1, Small(), {}, keep=1)
    with pytest.raises(CheckpointError, match=f"{message}.*--fresh"):
        load_weights(checkpoint, model)


@pytest.mark.parametrize(
    ("name", "load"),
    [("model.safetensors", lambda folder: load_weights(folder, Small())), ("trainer.pt", load_state)],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, load: Callable[[Path], Any]):
    checkpoint = save_checkpoint(tmp_path, 1, Small(), {"a": 1}, keep=1)
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"step-000001.*cannot be read.*remove this checkpoint"):
        load(checkpoint)
