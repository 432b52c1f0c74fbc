"""Any Pillow picture as upright 8-bit RGB: EXIF rotation, palettes, alpha on white, CMYK, 16-bit and float greys.

Promises scaling, never clipping, of wide greys, and an error where white is not defined. Opening files is `images`.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageOps

from .errors import MediaError

__all__ = ["DECODE_ERRORS", "orientation", "to_rgb", "upright"]

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    EOFError,
    IndexError,
    ZeroDivisionError,
    TypeError,
    OverflowError,
)
"""What Pillow raises for damaged input, found by fuzzing its readers."""

_ORIENTATION = 0x0112


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; from 5 on width and height are exchanged."""
    # A damaged EXIF block says nothing about the pixels, so it costs the rotation and not the picture.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says."""
    if orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB picture. Raises MediaError called `name` for greys whose white is not defined."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_eight_bit(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Grey ``[height, width]`` of 16 bits, or of floats in 0..1 or 0..255, as uint8."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if low >= 0 and high <= 255:
            return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    elif low >= 0 and high <= 65535:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    raise MediaError(name, f"its grey values run from {low:g} to {high:g}, so white is not defined", "Convert it to 8 or 16 bits")
