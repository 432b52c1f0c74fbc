"""Which frames of a video are shown to the model: the released inference policy, the training policy and plain uniform sampling.

Pure arithmetic on frame counts and rates, so that a prepared dataset, the processor and a server choose the same frames and print
the same numbers. Opens no file; degradation to a context budget decides `n` elsewhere and calls `uniform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import EagleDataError

__all__ = ["FrameChoice", "released_policy", "training_policy", "uniform"]


@dataclass(frozen=True)
class FrameChoice:
    """Frames chosen from a video.

    Attributes:
        indices: displayed-frame numbers, ascending, counted from the clip's first frame.
        timestamps: seconds printed for each frame, ``start + index / video_fps``.
        fps: the sampling rate printed in the prompt, frames per second.
    """

    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    fps: float

    def __len__(self) -> int:
        return len(self.indices)


def released_policy(
    total_frames: int,
    video_fps: float,
    *,
    fps: float = 2.0,
    nframes: int | None = None,
    min_frames: int = 4,
    max_frames: int = 256,
    start: float = 0.0,
) -> FrameChoice:
    """The released processor's choice: an even number of frames, spread from the first to the last (upstream 2.4, A.2).

    Indices and timestamps are computed in float32 as the release does: printed to two decimals, float64 would differ in about one
    video of thirty. (Its linspace is torch's scalar formula; torch's vectorised loop rounds some exact ties otherwise, by
    machine.)

    Args:
        total_frames: displayed frames of the clip.
        video_fps: the clip's own rate.
        fps: wanted rate, used when `nframes` is None.
        nframes: wanted number of frames, rounded to even; overrides `fps`, `min_frames` and `max_frames`.
        min_frames: lower bound, rounded up to even.
        max_frames: upper bound, rounded down to even.
        start: seconds added to every timestamp.

    Raises:
        EagleDataError: (a ValueError) unless ``2 <= n <= total_frames`` in the end, and for rates that are not positive.
    """
    _check(total_frames, video_fps)
    if nframes is not None:
        count = round(nframes / 2) * 2
    else:
        if fps <= 0:
            raise EagleDataError(f"fps={fps}: the sampling rate must be positive.")
        low = math.ceil(min_frames / 2) * 2
        high = math.floor(min(max_frames, total_frames) / 2) * 2
        wanted = total_frames / video_fps * fps
        count = math.floor(min(max(wanted, low), high, total_frames) / 2) * 2
    if not 2 <= count <= total_frames:
        raise EagleDataError(
            f"{count} frames asked of a video of {total_frames}: the released policy needs an even number from 2 to the "
            "video's length; change nframes, or use a longer clip."
        )
    indices = _linspace_float32(total_frames, count)
    timestamps = np.float32(start) + indices.astype(np.float32) / np.float32(video_fps)
    return FrameChoice(tuple(int(i) for i in indices), tuple(float(t) for t in timestamps), count / total_frames * video_fps)


def training_policy(total_frames: int, video_fps: float, *, fps: float, min_frames: int, max_frames: int) -> FrameChoice:
    """The data-preparation script's choice (upstream 3.4, A.2): all frames of a short clip, else `fps` clamped to the two bounds.

    Differs from upstream in two ways on purpose: a clip of one or two frames is kept (there it is dropped), and the printed rate
    uses the clip's own duration (there the whole file's).

    Raises:
        EagleDataError: for rates that are not positive or unless ``1 <= min_frames <= max_frames``.
    """
    _check(total_frames, video_fps)
    if fps <= 0 or not 1 <= min_frames <= max_frames:
        raise EagleDataError(
            f"fps={fps}, min_frames={min_frames}, max_frames={max_frames}: need fps > 0 and 1 <= min_frames <= max_frames."
        )
    if total_frames <= min_frames:
        return _choice(np.arange(total_frames), video_fps, 0.0, float(video_fps))
    rate = min(fps, video_fps)
    count = min(max(int(total_frames * rate / video_fps), min_frames), max_frames)
    return _choice(_linspace(total_frames, count), video_fps, 0.0, count / (total_frames / video_fps))


def uniform(total_frames: int, video_fps: float, n: int, *, start: float = 0.0) -> FrameChoice:
    """`n` frames spread evenly from the first to the last; ``n = 1`` takes the middle one. The rate is ``n / duration``.

    Raises:
        EagleDataError: unless ``1 <= n <= total_frames``.
    """
    _check(total_frames, video_fps)
    if not 1 <= n <= total_frames:
        raise EagleDataError(f"{n} frames asked of a video of {total_frames}: ask for 1 to {total_frames}.")
    return _choice(_linspace(total_frames, n), video_fps, start, n / total_frames * video_fps)


def _check(total_frames: int, video_fps: float) -> None:
    if total_frames < 1:
        raise EagleDataError(f"total_frames={total_frames}: a video needs at least one frame.")
    if not (video_fps > 0 and math.isfinite(video_fps)):
        raise EagleDataError(f"video_fps={video_fps}: the frame rate must be positive and finite.")


def _choice(indices: np.ndarray, video_fps: float, start: float, fps: float) -> FrameChoice:
    # Array arithmetic in float64 gives the same numbers as Python's, several times as fast.
    return FrameChoice(tuple(indices.tolist()), tuple((start + indices / video_fps).tolist()), float(fps))


def _linspace(total: int, count: int) -> np.ndarray:
    """``round(linspace(0, total - 1, count))`` in float64, halves to even; the middle frame when `count` is 1."""
    if count == 1:
        return np.array([(total - 1) // 2])
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _linspace_float32(total: int, count: int) -> np.ndarray:
    """torch's scalar linspace: counted up from the start in the first half, down from the end in the second, all in float32."""
    last = np.float32(total - 1)
    step = last / np.float32(count - 1)
    i = np.arange(count)
    values = np.where(i < count // 2, step * i.astype(np.float32), last - step * (count - 1 - i).astype(np.float32))
    # float32 cannot hold every frame number beyond 2**24 (6 days at 30 fps): never round past the end.
    return np.minimum(values.round().astype(np.int64), total - 1)
