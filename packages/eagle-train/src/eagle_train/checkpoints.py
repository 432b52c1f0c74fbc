"""Checkpoints of a run: written whole or not at all, the newest found again, old ones removed.

`checkpoints/step-000450/` is a Hugging Face folder (weights and config) plus `trainer.pt`: optimiser, position in the
stages and in the data, counters and loss history. A folder without its `complete` mark is not a checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eagle_train.errors import CheckpointError

_MARK = "complete"
_STATE = "trainer.pt"


def save_checkpoint(folder: Path, step: int, model: Any, state: dict[str, Any], *, keep: int) -> Path:
    """Write `folder/step-<step>` and remove all but the newest `keep` (at least 1) checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*.part"):
        shutil.rmtree(leftover)
    target = folder / f"step-{step:06d}"
    partial = folder / f".{target.name}.part"
    model.save_pretrained(partial)
    torch.save(state, partial / _STATE)
    (partial / _MARK).touch()
    if target.exists():
        _remove(target)
    os.replace(partial, target)
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((path.parent for path in folder.glob(f"step-*/{_MARK}")), key=lambda path: int(path.name.removeprefix("step-")))


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Load a checkpoint's weights into `model`, every one of them and no other.

    Raises CheckpointError where names or shapes differ; tied parameters may be stored once.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {name: tensor for file in sorted(checkpoint.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(checkpoint, str(error)) from error
    own = model.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in weights if name in own}
    missing = [name for name, parameter in own.items() if name not in weights and id(parameter) not in loaded]
    unknown = [name for name in weights if name not in own]
    shapes = [name for name, tensor in weights.items() if name in own and own[name].shape != tensor.shape]
    for names, what in ((missing, "lacks"), (unknown, "has the unknown"), (shapes, "has another shape of")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{checkpoint} {what} {names[0]}{others}: it is not of this run's model; move it away, or start over with --fresh"
            )
    model.load_state_dict(weights, strict=False)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state saved beside the weights, on the CPU; raises CheckpointError where it cannot be read."""
    try:
        return torch.load(checkpoint / _STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise _damaged(checkpoint / _STATE, str(error).partition("\n")[0]) from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({reason}); remove this checkpoint to go on from the one before it")


def _remove(checkpoint: Path) -> None:
    # The mark goes first: a folder that is removed half-way must not count as whole.
    (checkpoint / _MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


__all__ = ["list_checkpoints", "load_state", "load_weights", "save_checkpoint"]
