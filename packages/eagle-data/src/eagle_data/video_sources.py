"""From whatever names a video to a reader of its frames: files, bytes, addresses, members of archives, animations, PDFs, folders.

Promises one reader for each kind of source (`video_frames.FrameReader`), closed again where opening fails, and that a local file
never makes it open another file or address. Which frames are wanted is `video`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from .errors import MediaError
from .fetch import Fetch, is_address
from .images import ImageSource
from .references import check_regular, local_path
from .video_frames import FrameReader

if TYPE_CHECKING:
    from .media.byte_source import ByteSource
    from .media.frame_index import FrameIndex

__all__ = ["VideoSource", "byte_source", "open_reader"]

VideoSource: TypeAlias = "str | Path | bytes | BinaryIO | Sequence[ImageSource]"

_ANIMATION_MAGIC = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")
_BACKENDS = ("eagle", "decord", "torchcodec")


def open_reader(
    source: VideoSource,
    *,
    fps: float,
    index: FrameIndex | str | Path | None,
    backend: str,
    threads: int,
    truncated: bool,
    budget: float | None,
    fetch: Fetch | None,
) -> FrameReader:
    """The reader of a source; arguments and errors as `video.open_video`."""
    if backend != "eagle":
        return _other_backend(backend, source)
    if not isinstance(source, str | Path | bytes) and isinstance(source, Sequence) and not isinstance(source, Mapping):
        return _stills().PictureListReader(list(source), f"<list of {len(source)} pictures>", fps, fetch)
    if isinstance(source, str | Path) and os.path.isdir(path := local_path(os.fspath(source))):
        return _stills().PictureListReader(_stills().pictures_of(path), path, fps)
    if isinstance(source, str | Path) and os.fspath(source).lower().endswith(".tar"):
        path = local_path(os.fspath(source))
        check_regular(path)
        return _stills().PictureListReader(_stills().pictures_in_tar(path), path, fps)
    return _open_file(byte_source(source, fetch), fps, index, threads, truncated, budget)


def byte_source(source: Any, fetch: Fetch | None = None) -> ByteSource:
    """The bytes of a video file, of an archive's member, of a parquet cell or behind an address; errors as `video.open_video`."""
    from .media.byte_source import FileObjectSource, LocalFileSource, MemorySource
    from .media.web_source import WebSource
    from .references import parse_reference
    from .table_cells import read_cell
    from .tar_members import MemberSource

    if isinstance(source, bytes):
        return MemorySource(source, f"<{len(source)} bytes>")
    if isinstance(source, str | Path):
        text = os.fspath(source)
        if is_address(text):
            return WebSource(text, fetch)
        reference = parse_reference(text)
        if reference.kind != "file":
            check_regular(reference.file)
        if reference.kind == "cell":
            return MemorySource(read_cell(reference.file, *reference.cell), text)
        return MemberSource(reference.file, reference.inner) if reference.kind == "tar" else LocalFileSource(local_path(text))
    if hasattr(source, "read") and hasattr(source, "seek"):
        return FileObjectSource(source)
    raise MediaError(
        repr(source),
        f"a {type(source).__name__} is not a video source",
        "Give a path, bytes, a file object or a list of pictures",
    )


def _open_file(
    source: ByteSource,
    fps: float,
    index: FrameIndex | str | Path | None,
    threads: int,
    truncated: bool,
    budget: float | None,
) -> FrameReader:
    from .media.frame_index import FrameIndex
    from .media.reader import ContainerReader
    from .pdf_pages import PdfReader, is_pdf

    try:
        head = source.read_at(0, 16) if index is None else b""
        if is_pdf(head) or _is_animation(head):
            whole = source.path or source.read_at(0, source.size)
            source.close()
            return PdfReader(whole, source.name, fps) if is_pdf(head) else _stills().AnimationReader(whole, source.name)
        if isinstance(index, str | Path):
            index = FrameIndex.load(index)
        return ContainerReader(source, index=index, threads=threads, truncated=truncated, budget=budget)
    except BaseException:
        source.close()
        raise


def _other_backend(name: str, source: VideoSource) -> FrameReader:
    if name not in _BACKENDS:
        raise MediaError(str(source)[:80], f"there is no backend {name!r}", f"Pass one of {', '.join(_BACKENDS)}")
    label = f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
    if isinstance(source, str | Path):
        check_regular(local_path(os.fspath(source)))
    try:
        backends = import_module(f"{__package__}.backends")
        return backends.open(name, source, label)
    except ImportError as error:
        raise MediaError(label, f"the backend {name!r} is not installed ({error})", f"pip install {name}") from error


def _stills():
    from . import stills

    return stills


def _is_animation(head: bytes) -> bool:
    return head.startswith(_ANIMATION_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
