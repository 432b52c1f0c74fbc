"""Whether a reader gives the frames it is asked for: checked before anything is timed, against ffmpeg's decode of the whole file.

Readers resize and convert each in their own way, so a frame is right when it is nearer to ffmpeg's frame of that number than to
those before and after it. Not for: exactness to the bit (the conformance tests of the package).
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import numpy as np

__all__ = ["asked_of", "mistaken", "neighbourhoods"]


def asked_of(total: int) -> list[int]:
    """Nine frames of a video of `total`: the second, the last but one, and seven between, in ascending order."""
    return sorted({1, total - 2, *np.random.default_rng(total).integers(2, total - 2, 7).tolist()})


def neighbourhoods(program: str, path: str, asked: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[asked, 3, height, width, 3]``: each frame between its neighbours, by ffmpeg's full decode."""
    numbers = sorted({near for number in asked for near in (number - 1, number, number + 1)})
    choice = "+".join(f"eq(n,{number})" for number in numbers)
    command = [program, "-v", "error", "-nostdin", "-i", path, "-vf", f"select='{choice}',scale={size[0]}:{size[1]}"]
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    pictures = np.frombuffer(data, np.uint8).reshape(len(numbers), size[1], size[0], 3)
    place = {number: at for at, number in enumerate(numbers)}
    return np.stack([pictures[[place[number - 1], place[number], place[number + 1]]] for number in asked])


def mistaken(given: np.ndarray, near: np.ndarray, asked: Sequence[int]) -> list[int]:
    """The frames of `asked` for which a neighbour was given."""
    distance = np.abs(near.astype(np.int16) - given[:, None].astype(np.int16)).mean(axis=(2, 3, 4))
    return [number for number, nearest in zip(asked, distance.argmin(axis=1), strict=True) if nearest != 1]
