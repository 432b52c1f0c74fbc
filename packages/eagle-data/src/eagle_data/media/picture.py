"""One decoded video frame as an upright RGB picture, written where the caller wants it.

Promises the stream's own matrix and range (swscale reads them from the frame), the display matrix applied, and alpha laid on
white, as `images.load_image` does for stills. Keep one maker per thread: it reuses swscale's set-up, which costs 2 ms anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["Matrix", "PictureMaker", "Resize", "display_matrix", "is_turned"]

Matrix: TypeAlias = "tuple[int, int, int, int]"
Resize: TypeAlias = Literal["pillow", "swscale"]


class PictureMaker:
    """Converts the frames of one stream."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def write(self, frame: VideoFrame, place: np.ndarray, matrix: Matrix | None, resize: Resize) -> None:
        """Write `frame` into `place`, uint8 ``[height, width, 3]``, scaled to fill it.

        Args:
            frame: a decoded frame.
            place: where to write.
            matrix: the display matrix to apply, None to leave the picture as it is stored.
            resize: "pillow" converts to RGB and scales with Pillow's bicubic filter, as the released processor does; "swscale"
                does both at once, with swscale's bicubic filter on the stored planes.
        """
        if frame.interlaced_frame:
            frame = _progressive(frame)
        height, width = place.shape[:2]
        stored = (height, width) if matrix is not None and is_turned(matrix) else (width, height)
        if any(component.is_alpha for component in frame.format.components):
            rgba = self._array(frame, "rgba", None).astype(np.uint16)
            alpha = rgba[..., 3:]
            picture = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        else:
            scaled = stored if resize == "swscale" and (frame.width, frame.height) != stored else None
            picture = self._array(frame, "rgb24", scaled)
        if matrix is not None:
            picture = _upright(picture, matrix)
        if picture.shape != place.shape:
            image = Image.fromarray(np.ascontiguousarray(picture))
            picture = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        place[...] = picture

    def _array(self, frame: VideoFrame, layout: str, size: tuple[int, int] | None) -> np.ndarray:
        """``[height, width, channels]`` in the memory of the converted frame; copy it before the frame goes."""
        from av.video.reformatter import Interpolation

        width, height = size or (frame.width, frame.height)
        # Unbounded, every conversion starts as many threads as there are cores. (PyAV before 17 cannot, and gets BT.709 wrong.)
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=layout,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        plane = converted.planes[0]
        channels = len(layout) if layout == "rgba" else 3
        rows = _rows(plane)
        return rows[:, : width * channels].reshape(height, width, channels)


def _progressive(frame: VideoFrame) -> VideoFrame:
    """A copy of `frame` that is not called interlaced.

    swscale 9 gives the colours of interlaced pictures to each field apart; ffmpeg's own conversion, and swscale before, does not.
    """
    from av import VideoFrame

    copy = VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, copy.planes, strict=True):
        width = min(source.line_size, target.line_size)
        _rows(target)[:, :width] = _rows(source)[:, :width]
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    return copy


def _rows(plane: Any) -> np.ndarray:
    """uint8 ``[height, line_size]``: a plane's own memory."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """``(a, b, c, d)`` of the frame's own display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy)."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def is_turned(matrix: Matrix) -> bool:
    """Whether width and height change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def _upright(picture: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Apply the quarter turns and mirrorings of a display matrix; other angles go to the nearest quarter turn."""
    a, b, c, d = matrix
    across, down = a, d
    if is_turned(matrix):
        picture = picture.swapaxes(0, 1)
        across, down = c, b
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
