"""Checkpoints of a run: written whole or not at all, the newest found again, old ones removed.

`checkpoints/step-000450/` is a Hugging Face folder (weights and config) plus `trainer.pt`: optimiser, position in the
stages and in the data, counters and loss history. A folder without its `complete` mark is an interrupted write.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

_MARK = "complete"


def save_checkpoint(folder: Path, step: int, model: Any, state: dict[str, Any], *, keep: int) -> Path:
    """Write `folder/step-<step>` and remove all but the newest `keep` checkpoints."""
    target = folder / f"step-{step:06d}"
    partial = folder / f".{target.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    torch.save(state, partial / "trainer.pt")
    (partial / _MARK).touch()
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{_MARK}"))


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's state saved beside the weights."""
    return torch.load(checkpoint / "trainer.pt", weights_only=True)
