"""What the adapters share: a foreign library's picture at the size asked, and its error in one line."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import MediaError

__all__ = ["first_line", "shaped"]

_LONGEST = 200


def shaped(picture: np.ndarray, displayed: tuple[int, int], size: tuple[int, int] | None, name: str) -> np.ndarray:
    """uint8 ``[height, width, 3]`` at `size`, by Pillow's bicubic filter as everywhere else here.

    Raises:
        MediaError: the picture has not the size ``(width, height)`` that is displayed, so it was not turned upright.
    """
    if picture.shape[1::-1] != displayed:
        found = f"{picture.shape[1]} x {picture.shape[0]}"
        raise MediaError(name, f"came out {found}, not {displayed[0]} x {displayed[1]}", "Use backend='eagle'")
    if size is None or size == displayed:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the stack that native libraries print below it."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST] if lines else type(error).__name__
