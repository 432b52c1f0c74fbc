"""What preparation must know of media files: sizes, metadata and, on request, whether they decode at all.

Every reference is looked at once, however many samples share it; a failure is remembered too and raised again for each
of them. Keeps no pixels. Not shared between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

from eagle_data.encode import ImageUnit, VideoUnit
from eagle_data.errors import MediaError
from eagle_data.fetch import Fetch
from eagle_data.images import image_size, load_image
from eagle_data.samples import ImageRef, VideoRef
from eagle_data.video import VideoMetadata, open_video

if TYPE_CHECKING:
    from eagle_data.media.frame_index import FrameIndex

Answer = TypeVar("Answer")

_FRAMES_AT_ONCE = 32


class MediaProbes:
    """A memory of looks at media; `probed` counts the files that were really opened.

    Args:
        fetch: leave to fetch http(s) addresses, and its bounds; without it they are refused (see `eagle_data.fetch`).
        indexed: called with the path and the index of each video that has one, once for each path.
    """

    def __init__(self, *, fetch: Fetch | None = None, indexed: Callable[[str, FrameIndex], None] | None = None) -> None:
        self.probed = 0
        self._fetch, self._tell_index = fetch, indexed
        self._indexed: set[str] = set()
        self._answers: dict[Hashable, object] = {}
        self._failures: dict[Hashable, tuple[type[MediaError], tuple[str, ...]]] = {}
        self._verified: dict[VideoRef, set[int]] = {}

    def image(self, ref: ImageRef) -> tuple[int, int]:
        """Width and height in pixels, from the header. Raises MediaError."""
        return self._once(ref, lambda: image_size(ref.source, fetch=self._fetch))

    def video(self, ref: VideoRef) -> VideoMetadata:
        """Metadata of a video or clip. Raises MediaError."""
        return self._once(ref, lambda: self._look_at(ref))

    def verify(self, units: Iterable[ImageUnit | VideoUnit], *, tile_size: int) -> None:
        """Decode the pictures of `units` that no earlier call has decoded. Raises MediaError for the first damaged one."""
        wanted: dict[VideoRef, set[int]] = {}
        for unit in units:
            if isinstance(unit, ImageUnit):
                self._once(("decode", unit.path, unit.key), lambda unit=unit: load_image(unit.source, fetch=self._fetch).size)
            else:
                wanted.setdefault(VideoRef(unit.path, unit.start, unit.end), set()).update(unit.indices)
        for ref, indices in wanted.items():
            done = self._verified.setdefault(ref, set())
            new = sorted(indices - done)
            if new:
                self._once(("decode", ref, tuple(new)), lambda ref=ref, new=new: self._decode(ref, new, tile_size))
                done.update(new)

    def _look_at(self, ref: VideoRef) -> VideoMetadata:
        with open_video(ref.path, start=ref.start, end=ref.end, fetch=self._fetch) as video:
            if video.index is not None and self._tell_index is not None and ref.path not in self._indexed:
                self._indexed.add(ref.path)
                self._tell_index(ref.path, video.index)
            return video.metadata

    def _decode(self, ref: VideoRef, indices: list[int], tile_size: int) -> int:
        with open_video(ref.path, start=ref.start, end=ref.end, fetch=self._fetch) as video:
            for first in range(0, len(indices), _FRAMES_AT_ONCE):
                video.frames_at(indices[first : first + _FRAMES_AT_ONCE], size=(tile_size, tile_size)).intact()
        return len(indices)

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
