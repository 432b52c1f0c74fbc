"""One way to open a still image from wherever it lies, always upright 8-bit RGB, or a MediaError that names it.

Handles files, bytes, LMDB entries, tar members, parquet cells, PDF pages, Pillow images and (where allowed) http(s) addresses;
EXIF rotation, palettes, 16-bit, CMYK and alpha. Truncated or oversized pictures are errors, never partly grey ones, and a file
can neither open another file nor start a program. Not for video and not for resizing.
"""

from __future__ import annotations

import binascii
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, UnidentifiedImageError

from .errors import MediaError, MissingMediaError
from .fetch import Fetch, fetch_bytes, is_address
from .lmdb_store import read_lmdb
from .pdf_pages import is_pdf, page_picture, page_size
from .picture_modes import DECODE_ERRORS, orientation, to_rgb, upright
from .references import Reference, check_regular, local_path, parse_reference
from .table_cells import read_cell
from .tar_members import read_member

__all__ = ["ImageSource", "image_bytes", "image_size", "load_image", "local_path", "source_name"]

ImageSource: TypeAlias = "str | Path | bytes | Mapping[str, Any] | Image.Image"

MAX_PIXELS = 178_956_970
# Pillow's own decoders only. Left out above all: EPS, which starts Ghostscript, and the stubs that load whatever was registered.
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "PCX", "DDS", "QOI"),
    *("SGI", "SUN", "XBM", "XPM", "PSD"),
)
_MAPPINGS = (("lmdb_file", "lmdb_key"), ("tar_file", "tar_member"), ("parquet_file", "parquet_column", "parquet_row"))


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    fetch: Fetch | None = None,
) -> Image.Image:
    """Decode an image completely.

    Args:
        source: path, file or data URL; encoded bytes; ``{"lmdb_file": …, "lmdb_key": …}``; ``archive.tar::member`` or
            ``{"tar_file": …, "tar_member": …}``; ``cells.parquet::column::row`` or ``{"parquet_file": …, "parquet_column": …,
            "parquet_row": …}``; ``paper.pdf::page`` (extra `pdf`); an http(s) address; or a Pillow image.
        max_pixels: refuse larger pictures from their header, before decoding. Pillow's own limit (the default) still holds above
            it.
        at_least: ``(width, height)`` that the upright picture will be resized to, at most: a JPEG is then decoded at 1/2, 1/4 or
            1/8 while both sides stay at least twice as large, in a fraction of the time. After resizing to `at_least` the mean
            difference from the full path is at most 1.5 grey levels of 255 and the largest under 16 (tested on
            a picture rougher than photographs, of which four gave 0.1 to 0.4). None decodes every pixel, other formats always do.
        fetch: leave to fetch http(s) addresses, and its bounds (`eagle_data.fetch`); without it an address is refused.

    Returns:
        A new RGB picture, rotated as EXIF says, alpha laid on white, 16-bit scaled to 8. The first frame of an animation.

    Raises:
        MediaError: missing, truncated, corrupt, oversized or unknown file, naming it; also a pipe, a device or a folder.
    """
    name = source_name(source)
    with _opened(source, name, fetch, max_pixels) as image:
        _check_size(image, name, max_pixels)
        try:
            if at_least is not None and not isinstance(source, Image.Image):
                width, height = at_least
                image.draft(image.mode, (2 * height, 2 * width) if orientation(image) >= 5 else (2 * width, 2 * height))
            image.load()
            return to_rgb(upright(image), name)
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError(name, "has more pixels than Pillow's limit", "Store a smaller picture") from error
        except DECODE_ERRORS as error:
            raise MediaError(name, f"is truncated or corrupt ({error})", "Copy it again, or leave it out") from error


def image_size(source: ImageSource, *, fetch: Fetch | None = None) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, from the header alone.

    Raises:
        MediaError: missing or unknown file. A damaged body is not noticed here.
    """
    name = source_name(source)
    if isinstance(source, str | Path) and (page := parse_reference(os.fspath(source))).kind == "pdf":
        check_regular(page.file)
        return page_size(page.file, page.file, page.page)
    with _opened(source, name, fetch, MAX_PIXELS) as image:
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)


def image_bytes(source: ImageSource, *, fetch: Fetch | None = None) -> bytes:
    """The encoded bytes that a source names, not decoded. Raises MediaError, also for a Pillow image or a PDF page."""
    name = source_name(source)
    found = None if isinstance(source, Image.Image) else _binary(source, name, fetch)
    if found is None or isinstance(found, Reference):
        raise MediaError(name, "has no encoded bytes", "Encode it first")
    if isinstance(found, io.BytesIO):
        return found.getvalue()
    try:
        return Path(found).read_bytes()
    except FileNotFoundError as error:
        raise MissingMediaError(name, "no such file", "Check the path and the recipe's root") from error
    except OSError as error:
        raise MediaError(name, f"cannot be read ({error.strerror})", "Check its permissions") from error


def source_name(source: ImageSource) -> str:
    """How errors and reports call a source: its path, ``store[key]``, ``archive::member``, or its kind and size."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"<{source.mode} picture {source.width}x{source.height}>"
    if isinstance(source, Mapping):
        if "tar_file" in source:
            return f"{source['tar_file']}::{source.get('tar_member')}"
        if "parquet_file" in source:
            return f"{source['parquet_file']}::{source.get('parquet_column')}::{source.get('parquet_row')}"
        return f"{source.get('lmdb_file')}[{source.get('lmdb_key')}]"
    if not isinstance(source, str | Path):
        return repr(source)
    text = os.fspath(source)
    return text if not text.startswith("data:") else f"{text[:40]}…"


@contextmanager
def _opened(source: ImageSource, name: str, fetch: Fetch | None, max_pixels: int) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    file = _binary(source, name, fetch)
    if isinstance(file, Reference):
        yield page_picture(file.file, file.file, file.page, max_pixels=max_pixels)
        return
    try:
        image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise MediaError(name, "has more pixels than Pillow's limit", "Store a smaller picture") from error
    except FileNotFoundError as error:
        raise MissingMediaError(name, "no such file", "Check the path and the recipe's root") from error
    except UnidentifiedImageError as error:
        if is_pdf(_head(file)):
            raise MediaError(name, "is a PDF of pages", f"Name a page, {name}::1, or open it as a video") from error
        raise MediaError(name, "is not an image that Pillow knows", "Convert it to PNG, JPEG or WebP") from error
    except DECODE_ERRORS as error:
        raise MediaError(name, f"cannot be opened as an image ({error})", "Check the file and its permissions") from error
    with image:
        yield image


def _binary(source: Any, name: str, fetch: Fetch | None) -> str | io.BytesIO | Reference:
    """A path or the bytes of a picture; the reference itself for a page of a PDF, which is drawn and not decoded."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Mapping):
        return io.BytesIO(_mapped(source))
    if not isinstance(source, str | Path):
        raise MediaError(
            name, f"a {type(source).__name__} is not an image source", "Give a path, bytes, a reference or a picture"
        )
    text = os.fspath(source)
    if text.startswith("data:"):
        return io.BytesIO(_data_url(text, name))
    if is_address(text):
        return io.BytesIO(fetch_bytes(text, fetch))
    reference = parse_reference(text)
    check_regular(reference.file)
    if reference.kind == "tar":
        return io.BytesIO(read_member(reference.file, reference.inner))
    if reference.kind == "cell":
        return io.BytesIO(read_cell(reference.file, *reference.cell))
    return reference if reference.kind == "pdf" else reference.file


def _mapped(source: Mapping[str, Any]) -> bytes:
    keys = set(source)
    if keys == set(_MAPPINGS[0]):
        return read_lmdb(source["lmdb_file"], source["lmdb_key"])
    for key in keys & {"tar_file", "parquet_file"}:
        check_regular(os.fspath(source[key]))
    if keys == set(_MAPPINGS[1]):
        return read_member(os.fspath(source["tar_file"]), source["tar_member"])
    if keys == set(_MAPPINGS[2]):
        return read_cell(os.fspath(source["parquet_file"]), source["parquet_column"], int(source["parquet_row"]))
    forms = ", or ".join(" and ".join(keys) for keys in _MAPPINGS)
    raise MediaError(str(dict(source)), "is no reference to a picture", f"Give exactly the keys {forms}")


def _data_url(text: str, name: str) -> bytes:
    import base64

    header, comma, payload = text.partition(",")
    if not comma or not header.endswith(";base64"):
        raise MediaError(name, "is not a base64 data URL", "Write it as data:image/png;base64,…")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise MediaError(name, f"holds broken base64 ({error})", "Encode the picture again") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name in _FORMATS)  # a build of Pillow may lack some


def _head(file: str | io.BytesIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:8]
    with open(file, "rb") as opened:
        return opened.read(8)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise MediaError(
            name, f"has {image.width} x {image.height} pixels, more than {max_pixels}", "Store it smaller, or raise max_pixels"
        )
