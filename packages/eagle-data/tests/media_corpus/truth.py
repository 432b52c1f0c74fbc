"""The truth that readers are judged by: every displayed frame of a file, from ffmpeg's own decode of all of it.

Promises: pictures as stored (not turned), converted with the stream's matrix and range, alpha laid on white, or the decoder's own
planes; times counted from the first frame. Not for: damaged files, where nothing is true but what the intact file shows.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

__all__ = ["Truth", "stored_of", "truth_of"]


@dataclass(frozen=True)
class Truth:
    """What a file shows.

    Attributes:
        pictures: uint8 ``[frames, height, width, 3]``, RGB.
        seconds: float64 ``[frames]``, the first at 0.
    """

    pictures: np.ndarray
    seconds: np.ndarray

    def turned(self, degrees: int) -> np.ndarray:
        """The pictures turned clockwise."""
        return np.rot90(self.pictures, -degrees // 90, axes=(1, 2))


def truth_of(program: str, path: Path, *, conversion: str = "", alpha: bool = False) -> Truth:
    """Decode all of `path` with the ffmpeg `program`, from the first packet to the last; the rest as in `Clip`.

    Raises:
        ValueError: ffmpeg fails, or shows nothing.
    """
    channels, layout = (4, "rgba") if alpha else (3, "rgb24")
    data, head, lines = _decoded(program, path, *(("-vf", conversion) if conversion else ()), "-pix_fmt", layout)
    ticks = np.array([int(line[2]) for line in lines], np.int64)
    width, height = map(int, head["dimensions 0"].split("x"))
    pictures = np.frombuffer(data, np.uint8).reshape(-1, height, width, channels)
    if len(pictures) != len(ticks):
        raise ValueError(f"{path.name}: ffmpeg gave {len(pictures)} pictures and {len(ticks)} times")
    base = Fraction(head["tb 0"])
    return Truth(on_white(pictures) if alpha else pictures, (ticks - ticks[0]) * base.numerator / base.denominator)


def stored_of(program: str, path: Path) -> np.ndarray:
    """Every frame as ffmpeg's decoder stores it: uint8 ``[frames, bytes]``, plane after plane without padding, in its own pixel
    format. Raises ValueError as `truth_of`."""
    data, _, lines = _decoded(program, path)
    sizes = {int(line[4]) for line in lines}
    if len(sizes) != 1 or len(data) != sizes.pop() * len(lines):
        raise ValueError(f"{path.name}: ffmpeg gave {len(data)} bytes for {len(lines)} frames")
    return np.frombuffer(data, np.uint8).reshape(len(lines), -1)


def _decoded(program: str, path: Path, *output: str) -> tuple[bytes, dict[str, str], list[list[str]]]:
    """The raw bytes of all frames, then what ffmpeg's framecrc says: its head, and of each frame the fields of its line. `output`
    holds options for the raw bytes."""
    every = ("-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base:v", "demux")
    with TemporaryDirectory() as folder:
        told = Path(folder) / "told.txt"
        command = [program, "-v", "error", "-nostdin", "-threads", "1", "-noautorotate", "-i", str(path)]
        command += [*every, *output, "-f", "rawvideo", "pipe:1", *every, "-f", "framecrc", str(told)]
        done = subprocess.run(command, check=False, capture_output=True)
        lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    head = dict(line[1:].split(": ", 1) for line in lines if line.startswith("#"))
    frames = [line.split(",") for line in lines if not line.startswith("#")]
    if done.returncode or not frames:
        raise ValueError(f"{path.name}: ffmpeg shows nothing of it: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout, head, frames


def on_white(pictures: np.ndarray) -> np.ndarray:
    """RGBA over white, rounded to the nearest value."""
    alpha = pictures[..., 3:].astype(np.uint16)
    return ((pictures[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
