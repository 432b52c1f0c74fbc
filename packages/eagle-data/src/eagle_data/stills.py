"""Animated pictures (GIF, WebP, PNG), folders, tar archives and lists of pictures, read as videos.

Promises the same pictures as `images.load_image`: upright RGB, alpha on white. Frames of an animation are composed as a viewer
shows them. Opened through `eagle_data.video`; not for single photographs.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from .errors import MediaError
from .fetch import Fetch
from .images import ImageSource, image_size, load_image, source_name
from .tar_members import member_names

__all__ = ["AnimationReader", "PictureListReader", "pictures_in_tar", "pictures_of"]

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif")
# Browsers show frames that ask for 10 ms or less for 100 ms; so many files rely on it that it is what such a file means.
_FAST_MS, _FAST_SHOWN_MS = 10, 100


class AnimationReader:
    """Frames of one animated picture file, timed by its own frame durations. Implements `video_frames.FrameReader`."""

    rate: float | None = None
    rotation = 0

    def __init__(self, source: str | bytes, name: str) -> None:
        self.name = name
        try:
            self._image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            milliseconds = []
            for number in range(getattr(self._image, "n_frames", 1)):
                self._image.seek(number)
                if self._image.format == "WEBP":
                    self._image.load()  # Pillow learns a WebP frame's duration only by decoding it.
                milliseconds.append(float(self._image.info.get("duration") or 0))
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise MediaError(name, f"is not a readable animation ({error})", "Check the file, or convert it to MP4") from error
        shown = [_FAST_SHOWN_MS if ms <= _FAST_MS else ms for ms in milliseconds]
        self.times = np.concatenate([[0.0], np.cumsum(shown) / 1000])
        self.width, self.height = self._image.size

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted frames in order; see `video_frames.FrameReader`."""
        for number in wanted:
            try:
                self._image.seek(number)
                self._image.load()
            except (OSError, EOFError, SyntaxError, ValueError) as error:
                raise MediaError(self.name, f"frame {number} is truncated or corrupt ({error})", "Check the file") from error
            yield number, _array(load_image(self._image), size)

    def close(self) -> None:
        """Release the file."""
        self._image.close()


class PictureListReader:
    """Pictures shown one after another at a fixed rate. Implements `video_frames.FrameReader`."""

    rotation = 0

    def __init__(self, pictures: Sequence[ImageSource], name: str, fps: float, fetch: Fetch | None = None) -> None:
        if not pictures:
            raise MediaError(name, "holds no pictures", f"Give at least one of {', '.join(_EXTENSIONS)}")
        if not fps > 0:
            raise MediaError(name, f"fps={fps} is not a rate", "Give a positive fps")
        self.name = name
        self.rate: float | None = float(fps)
        self.times = np.arange(len(pictures) + 1) / fps
        self._pictures, self._fetch = pictures, fetch
        self.width, self.height = image_size(pictures[0], fetch=fetch)

    def read(self, wanted: Sequence[int], size: tuple[int, int] | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the wanted pictures in order; see `video_frames.FrameReader`."""
        for number in wanted:
            picture = load_image(self._pictures[number], fetch=self._fetch)
            if size is None and picture.size != (self.width, self.height):
                raise MediaError(
                    source_name(self._pictures[number]),
                    f"is {picture.width}x{picture.height} but the first picture of {self.name} is {self.width}x{self.height}",
                    "Pass size=(width, height)",
                )
            yield number, _array(picture, size)

    def close(self) -> None:
        """Nothing is held open between frames."""


def pictures_of(folder: str) -> list[ImageSource]:
    """The pictures in `folder`, sorted so that frame2 comes before frame10."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(_EXTENSIONS)]
    return [os.path.join(folder, name) for name in sorted(names, key=_natural)]


def pictures_in_tar(archive: str) -> list[ImageSource]:
    """The pictures in an uncompressed tar archive, by their names as `pictures_of` sorts them. Raises MediaError."""
    names = [name for name in member_names(archive) if name.lower().endswith(_EXTENSIONS)]
    return [{"tar_file": archive, "tar_member": name} for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _array(picture: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    return np.asarray(picture if size is None else picture.resize(size, Image.Resampling.BICUBIC))
