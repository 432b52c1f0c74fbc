"""The visual rules of a checkpoint folder, read from its `config.json` without transformers.

Promises the numbers that eagle-model derives from the same file: tile side, context tokens per tile, tile limits and
thumbnail (upstream section 1.1). Weights and the tokenizer are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle_data.ads import VisualRules
from eagle_data.dialect import RELEASED, Dialect

# What SiglipVisionConfig means where a file leaves the key out.
_SIGLIP_IMAGE_SIZE, _SIGLIP_PATCH_SIZE = 224, 16


def rules_of_checkpoint(folder: str | Path, *, fps: float = 2.0, min_frames: int = 8, dialect: Dialect = RELEASED) -> VisualRules:
    """`VisualRules` for the checkpoint in `folder`.

    Raises FileNotFoundError without a `config.json` and ValueError naming the file and key that make no sense.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder of an Eagle 2.5 checkpoint")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    vision = config.get("vision_config") if isinstance(config, Mapping) else None
    if not isinstance(vision, Mapping):
        raise ValueError(f"{path} has no vision_config; give the folder of an Eagle 2.5 checkpoint")
    tile = _whole(config.get("force_image_size") or vision.get("image_size", _SIGLIP_IMAGE_SIZE), "image_size", path)
    patch = _whole(vision.get("patch_size", _SIGLIP_PATCH_SIZE), "patch_size", path)
    ratio = config.get("downsample_ratio", 0.5) if config.get("use_pixel_shuffle", True) else 1.0
    factor = round(1 / ratio) if isinstance(ratio, (int, float)) and 0 < ratio <= 1 else 0
    if not factor or abs(factor * ratio - 1) > 1e-6 or tile // patch % factor:
        raise ValueError(f"{path}: a tile of {tile} px with patches of {patch} px cannot be shuffled by downsample_ratio {ratio}")
    return VisualRules(
        tile_size=tile,
        tokens_per_tile=(tile // patch // factor) ** 2,
        min_tiles=_whole(_either(config, "min_dynamic_tiles", "min_dynamic_patch", 1), "min_dynamic_tiles", path),
        max_tiles=_whole(_either(config, "max_dynamic_tiles", "max_dynamic_patch", 6), "max_dynamic_tiles", path),
        use_thumbnail=bool(config.get("use_thumbnail", False)),
        fps=fps,
        min_frames=min_frames,
        dialect=dialect,
    )


def _either(config: Mapping[str, Any], key: str, older: str, default: int) -> Any:
    return config.get(key, config.get(older, default))


def _whole(value: Any, key: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{path}: {key} is {value!r}; it must be a whole number of at least 1")
    return value
