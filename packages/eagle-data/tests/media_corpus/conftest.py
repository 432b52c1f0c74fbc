"""The corpus, made once for all tests of this folder by the very command that a person would type, and ffmpeg's truth of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .clips import CLIPS
from .truth import Truth, truth_of

MAKE = Path(__file__).parent / "make.py"
BY_NAME = {clip.name: clip for clip in CLIPS}


@pytest.fixture(scope="session")
def program() -> str:
    """The ffmpeg program of imageio-ffmpeg; without it these tests have no truth and are skipped."""
    return pytest.importorskip("imageio_ffmpeg", reason="install imageio-ffmpeg: it makes the corpus").get_ffmpeg_exe()


@pytest.fixture(scope="session")
def corpus(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every file of the corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    done = subprocess.run([sys.executable, str(MAKE), "--out", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def truth(program: str, corpus: Path) -> Callable[[str], Truth]:
    """Gives ffmpeg's decode of a clip by its name; the last one is kept, since tests of a file follow each other."""
    kept: dict[str, Truth] = {}

    def give(name: str) -> Truth:
        if name not in kept:
            kept.clear()
            clip = BY_NAME.get(name)
            kept[name] = truth_of(
                program,
                corpus / name,
                conversion=clip.conversion if clip else "",
                alpha=clip.alpha if clip else False,
            )
        return kept[name]

    return give
