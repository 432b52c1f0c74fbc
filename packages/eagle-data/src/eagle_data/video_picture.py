"""One decoded video frame as an upright RGB picture.

Promises the stream's own matrix and range (swscale reads them from the frame), the display matrix applied, and alpha laid on
white, as `images.load_image` does for stills. Decoding is `video_container`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["PictureMaker", "display_matrix", "resized"]


class PictureMaker:
    """Converts the frames of one stream; keep one per stream: it reuses swscale's set-up, which costs 2 ms when made anew."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 ``[height, width, 3]`` as displayed, at the stored resolution."""
        if any(component.is_alpha for component in frame.format.components):
            rgba = self._array(frame, "rgba").astype(np.uint16)
            alpha = rgba[..., 3:]
            picture = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        else:
            picture = self._array(frame, "rgb24")
        return _upright(picture, display_matrix(frame))

    def _array(self, frame: VideoFrame, layout: str) -> np.ndarray:
        # Unbounded, every conversion starts as many threads as there are cores. (PyAV before 17 cannot, and gets BT.709 wrong.)
        return self._reformatter.reformat(frame, format=layout, threads=1).to_ndarray()


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """``(a, b, c, d)``: a stored point (x, y) is shown at (ax + cy, bx + dy). Only signs and relative sizes matter."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`picture` ``[h, w, 3]`` at ``size = (width, height)``, by the filter that `pixels` uses, so that both paths agree."""
    if picture.shape[1::-1] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply the quarter turns and mirrorings of a display matrix; other angles go to the nearest quarter turn."""
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture = picture.swapaxes(0, 1)
        across, down = c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
