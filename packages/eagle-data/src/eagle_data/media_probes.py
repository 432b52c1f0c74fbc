"""What preparation must know of media files: sizes, metadata and, on request, whether they decode at all.

Every reference is looked at once, however many samples share it; a failure is remembered too and raised again for each
of them. Keeps no pixels. Not shared between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.errors import MediaError
from eagle_data.images import image_size, load_image
from eagle_data.samples import ImageRef, VideoRef
from eagle_data.video import VideoMetadata, open_video, probe_video

Answer = TypeVar("Answer")

_FRAMES_AT_ONCE = 32


class MediaProbes:
    """A memory of looks at media; `probed` counts the files that were really opened."""

    def __init__(self) -> None:
        self.probed = 0
        self._answers: dict[Hashable, object] = {}
        self._failures: dict[Hashable, tuple[type[MediaError], tuple[str, ...]]] = {}
        self._verified: dict[VideoRef, set[int]] = {}

    def image(self, ref: ImageRef) -> tuple[int, int]:
        """Width and height in pixels, from the header. Raises MediaError."""
        return self._once(ref, lambda: image_size(ref.source))

    def video(self, ref: VideoRef) -> VideoMetadata:
        """Metadata of a video or clip. Raises MediaError."""
        return self._once(ref, lambda: probe_video(ref.path, start=ref.start, end=ref.end))

    def verify(self, units: Iterable[ImageUnit | VideoUnit], *, tile_size: int) -> None:
        """Decode the pictures of `units` that no earlier call has decoded. Raises MediaError for the first damaged one."""
        wanted: dict[VideoRef, set[int]] = {}
        for unit in units:
            if isinstance(unit, ImageUnit):
                self._once(("decode", unit.path, unit.key), lambda unit=unit: load_image(unit.source).size)
            else:
                wanted.setdefault(VideoRef(unit.path, unit.start, unit.end), set()).update(unit.indices)
        for ref, indices in wanted.items():
            done = self._verified.setdefault(ref, set())
            new = sorted(indices - done)
            if new:
                self._once(("decode", ref, tuple(new)), lambda ref=ref, new=new: _decode(ref, new, tile_size))
                done.update(new)

    def _once(self, key: Hashable, look: Callable[[], Answer]) -> Answer:
        if key in self._failures:
            kind, arguments = self._failures[key]
            raise kind(*arguments)
        if key not in self._answers:
            self.probed += 1
            try:
                self._answers[key] = look()
            except MediaError as error:
                # Its parts, not the error: a raised error holds on to the frames and pictures it passed through.
                self._failures[key] = type(error), (error.source, error.reason, error.mend)
                raise
        return self._answers[key]  # pyright: ignore[reportReturnType]  # stored under this key by the same kind of look


def _decode(ref: VideoRef, indices: list[int], tile_size: int) -> int:
    with open_video(ref.path, start=ref.start, end=ref.end) as video:
        for first in range(0, len(indices), _FRAMES_AT_ONCE):
            video.frames_at(indices[first : first + _FRAMES_AT_ONCE], size=(tile_size, tile_size)).intact()
    return len(indices)
