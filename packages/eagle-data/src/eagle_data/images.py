"""One way to open a still image from wherever it lies, always upright 8-bit RGB, or a MediaError that names it.

Handles files, bytes, LMDB entries, Pillow images and (for `load_image`) http(s), file and data URLs; EXIF rotation, palettes,
16-bit, CMYK and alpha. Truncated or oversized pictures are errors, never partly grey ones. Not for video and not for resizing.
"""

from __future__ import annotations

import binascii
import io
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import MediaError, MissingMediaError
from .lmdb_store import read_lmdb

__all__ = ["ImageSource", "image_size", "load_image", "source_name"]

ImageSource: TypeAlias = "str | Path | bytes | Mapping[str, str] | Image.Image"

MAX_PIXELS = 178_956_970
_MAX_DOWNLOAD = 256 << 20
_TIMEOUT = 30.0
_ORIENTATION = 0x0112
_DECODE_ERRORS = (
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


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image completely.

    Args:
        source: path; http(s), file or data URL; encoded bytes; ``{"lmdb_file": ..., "lmdb_key": ...}``; or a Pillow image.
        max_pixels: refuse larger pictures from their header, before decoding. Pillow's own limit (the default) still holds above
        it.

    Returns:
        A new RGB picture, rotated as EXIF says, alpha laid on white, 16-bit scaled to 8. The first frame of an animation.

    Raises:
        MediaError: missing, truncated, corrupt, oversized or unknown file, naming it.
    """
    name = source_name(source)
    with _opened(source, name) as image:
        _check_size(image, name, max_pixels)
        try:
            image.load()
            return _to_rgb(_upright(image), name)
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError(name, "has more pixels than Pillow's limit", "Store a smaller picture") from error
        except _DECODE_ERRORS as error:
            raise MediaError(name, f"is truncated or corrupt ({error})", "Copy it again, or leave it out") from error


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, from the header alone.

    Raises:
        MediaError: missing or unknown file. A damaged body is not noticed here.
    """
    name = source_name(source)
    with _opened(source, name) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def source_name(source: ImageSource) -> str:
    """How errors and reports call a source: its path, ``store[key]``, or its kind and size."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<{source.mode} picture {source.width}x{source.height}>"
    if isinstance(source, Mapping):
        return f"{source.get('lmdb_file')}[{source.get('lmdb_key')}]"
    if not isinstance(source, str | Path):
        return repr(source)
    text = os.fspath(source)
    return text if not text.startswith("data:") else f"{text[:40]}…"


@contextmanager
def _opened(source: ImageSource, name: str) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    file = _binary(source, name)
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise MediaError(name, "has more pixels than Pillow's limit", "Store a smaller picture") from error
    except FileNotFoundError as error:
        raise MissingMediaError(name, "no such file", "Check the path and the recipe's root") from error
    except UnidentifiedImageError as error:
        raise MediaError(name, "is not an image that Pillow knows", "Convert it to PNG, JPEG or WebP") from error
    except _DECODE_ERRORS as error:
        raise MediaError(name, f"cannot be opened as an image ({error})", "Check the file and its permissions") from error
    with image:
        yield image


def _binary(source: Any, name: str) -> str | io.BytesIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Mapping):
        if set(source) != {"lmdb_file", "lmdb_key"}:
            raise MediaError(str(dict(source)), "is not an LMDB reference", "Give exactly the keys lmdb_file and lmdb_key")
        return io.BytesIO(read_lmdb(source["lmdb_file"], source["lmdb_key"]))
    if not isinstance(source, str | Path):
        raise MediaError(
            name, f"a {type(source).__name__} is not an image source", "Give a path, bytes, LMDB reference or picture"
        )
    text = os.fspath(source)
    if text.startswith("data:"):
        return io.BytesIO(_data_url(text, name))
    if text.startswith(("http://", "https://")):
        return io.BytesIO(_download(text))
    return local_path(text)


def local_path(text: str) -> str:
    """The path that a ``file://`` URL names; any other text unchanged."""
    if not text.startswith("file://"):
        return text
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    return url2pathname(urlsplit(text).path)


def _data_url(text: str, name: str) -> bytes:
    import base64

    header, comma, payload = text.partition(",")
    if not comma or not header.endswith(";base64"):
        raise MediaError(name, "is not a base64 data URL", "Write it as data:image/png;base64,…")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise MediaError(name, f"holds broken base64 ({error})", "Encode the picture again") from error


def _download(url: str) -> bytes:
    from http.client import HTTPException
    from urllib import request

    # Only these handlers: a redirect must not be able to turn an address on the web into a local file.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    try:
        with opener.open(request.Request(url, headers={"User-Agent": "eagle-data"}), timeout=_TIMEOUT) as response:
            body = response.read(_MAX_DOWNLOAD + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise MediaError(
            url, f"could not be fetched ({error})", "Check the address, or fetch it first and give the file"
        ) from error
    if len(body) > _MAX_DOWNLOAD:
        raise MediaError(url, f"is larger than {_MAX_DOWNLOAD >> 20} MB", "Fetch it first and give the file")
    return body


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise MediaError(
            name, f"has {image.width} x {image.height} pixels, more than {max_pixels}", "Store it smaller, or raise max_pixels"
        )


def _orientation(image: Image.Image) -> int:
    # A damaged EXIF block says nothing about the pixels, so it costs the rotation and not the picture.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
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
