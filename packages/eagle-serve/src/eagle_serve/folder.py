"""Is this a checkpoint folder? Answered from names and one small file, before anything heavy is imported.

It promises that a local mistake (a typo, the run's folder instead of the checkpoint's) is found at once and never turned
into a request to a model hub. Whether weights and processor are whole is `loading`'s question.
"""

from __future__ import annotations

import re
from pathlib import Path

from eagle_serve.errors import CheckpointError

__all__ = ["find_checkpoint"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_checkpoint(path: str | Path) -> str:
    """The folder as text, or a hub id unchanged. Raises CheckpointError with the mend for anything else."""
    folder = Path(path).expanduser()
    if not folder.exists():
        # `owner/name` is a hub id only where `owner` is no folder here: `runs/typo` is a typo.
        if _HUB_ID.fullmatch(str(path)) and not folder.parent.exists():
            return str(path)
        raise CheckpointError(f"{path}: no such folder; give a checkpoint folder or a hub id such as nvidia/Eagle-2.5-8B")
    if not folder.is_dir():
        raise CheckpointError(f"{path}: is a file; give the folder that holds config.json")
    if not (folder / "config.json").is_file():
        inside = [child for child in sorted(folder.iterdir()) if (child / "config.json").is_file()]
        mend = f"did you mean {inside[0]}?" if inside else "give the folder that save_pretrained or eagle-train wrote"
        raise CheckpointError(f"{path}: holds no config.json; {mend}")
    return str(folder)
