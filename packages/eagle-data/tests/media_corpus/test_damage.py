"""Damaged and hostile files: a MediaError, or the good frames with the damaged ones marked. Never a wrong frame unmarked, never a
hang, a crash or a leak. What a damaged file should show is what the intact file shows at that time.

Damage of which FFmpeg's decoder gives no sign within a group of pictures cannot be known to a reader: a wrong frame there is
excused, and the file that has no sign anywhere is named. Tables that lie about intact media excuse nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.error import FFmpegError

from .surgery import DAMAGED
from .truth import Truth

CHILD = Path(__file__).parent / "child.py"
NO_VIDEO = ["empty.mp4", "random.mp4", "page.mp4", "no_tables.mp4", "sound_only.mp4"]
HURT = [name for name in DAMAGED if name not in NO_VIDEO]
TOLERANCE = 2
WITHOUT_A_SIGN = {"flipped_hevc.mp4"}
"""FFmpeg decodes all of it, wrongly, with neither an error nor a mark."""
FUZZED = ["edit_list.mp4", "h264_co64.mp4", "h264_fragments.mp4", "h264.mkv"]
CUT = ["cut.mp4", "cut.mkv", "cut.webm", "cut.ts", "cut.avi", "cut_fragments.mp4"]


def in_a_child(*words: object, seconds: float = 120) -> dict[str, Any]:
    """The JSON that the child printed last; fails when it hangs or crashes."""
    command = [sys.executable, str(CHILD), *map(str, words)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{words}: still running after {seconds} s; it had said {(error.stdout or b'')[-80:]!r}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{words}: exit code {done.returncode} after {lines[-1:]}\n{done.stderr[-2000:]}"
    return json.loads(lines[-1])


Reading = Callable[..., tuple[dict[str, Any], dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def reading(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """What a child gets of a file: its answer and the arrays it kept; the last one is kept for the next test."""
    kept: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
    out = tmp_path_factory.mktemp("read") / "frames.npz"

    def read(name: str, *words: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if (name, *words) not in kept:
            kept.clear()
            out.unlink(missing_ok=True)
            answer = in_a_child("read", corpus / name, out, *words)
            kept[(name, *words)] = answer, dict(np.load(out)) if out.exists() else {}
        return kept[(name, *words)]

    return read


@pytest.mark.parametrize("name", NO_VIDEO)
def test_what_holds_no_video_is_a_media_error_that_names_the_file(reading: Reading, name: str) -> None:
    assert name in reading(name)[0].get("error", "")


@pytest.mark.parametrize("name", HURT)
class TestDamaged:
    """Both tests of a file follow each other, so that it is read once."""

    def test_no_wrong_frame_goes_unmarked(self, corpus: Path, truth: Callable[[str], Truth], reading: Reading, name: str) -> None:
        answer, given = reading(name)
        assert name in answer.get("error", name)
        if given:
            good_frames(corpus, name, given, slice(int(given["by_number"])), truth(DAMAGED[name][0] or ""))

    def test_no_other_frame_is_shown_for_one_that_is_lost(
        self, corpus: Path, truth: Callable[[str], Truth], reading: Reading, name: str
    ) -> None:
        _, given = reading(name)
        if given:
            good_frames(corpus, name, given, slice(int(given["by_number"]), None), truth(DAMAGED[name][0] or ""))


@pytest.mark.parametrize("name", CUT)
def test_the_first_part_of_a_cut_file_is_given_to_who_accepts_that(
    corpus: Path, truth: Callable[[str], Truth], reading: Reading, name: str
) -> None:
    answer, given = reading(name, "truncated")
    assert "error" not in answer
    intact = truth(DAMAGED[name][0] or "")
    shown = good_frames(corpus, name, given, slice(int(given["by_number"])), intact)
    assert len(shown) >= 0.4 * len(intact.pictures), "60 % of the bytes are there"


def good_frames(corpus: Path, name: str, given: dict[str, np.ndarray], part: slice, intact: Truth) -> set[int]:
    """The numbers of the frames that were given as good, after checking that every one of them is."""
    good = ~given["corrupt"][part]
    assert good.any(), "not one good frame: then a MediaError would say more"
    seconds, pictures = given["seconds"][part][good], given["pictures"][part][good]
    shown = np.searchsorted(intact.seconds, seconds + 1e-4, side="right") - 1
    difference = np.abs(pictures.astype(np.int16) - intact.pictures[shown]).max(axis=(1, 2, 3))
    wrong = seconds[difference > TOLERANCE]
    if not name.startswith("lying_"):
        keys, signs = keyframes(corpus / (DAMAGED[name][0] or "")), signs_of_damage(corpus / name, intact.seconds)
        assert (len(signs) > 0) == (name not in WITHOUT_A_SIGN)
        noticed = np.searchsorted(keys, signs + 1e-4)
        wrong = wrong[np.isin(np.searchsorted(keys, wrong + 1e-4), noticed)]
    assert wrong.tolist() == []
    return set(shown.tolist())


def keyframes(path: Path) -> np.ndarray:
    """Seconds from the first keyframe to every keyframe of an intact file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        found = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.size and packet.is_keyframe]
    return np.array(found) - found[0]


def signs_of_damage(path: Path, intact: np.ndarray) -> np.ndarray:
    """Seconds of the frames that a decode from the first packet to the last marks as corrupt or does not give, in order."""
    shown: dict[float, bool] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = stream.codec_context.decode(packet) if packet is not None else []
            except FFmpegError:
                continue
            if packet is None:
                break
            shown |= {float(frame.time or 0): frame.is_corrupt for frame in frames}
    start = min(shown, default=0.0)
    good = np.array([second - start for second, corrupt in shown.items() if not corrupt] or [-1.0])
    return intact[np.abs(intact[:, None] - good).min(axis=1) > 1e-3]


def fuzz(corpus: Path, name: str, first: int, end: int) -> None:
    answer = in_a_child("fuzz", corpus / name, first, end, seconds=3600)
    assert answer["raised"] == []
    assert answer["read"] + answer["refused"] == end - first
    assert answer["refused"] > 0, "no mutation was noticed: the tables were not hit"


@pytest.mark.parametrize("name", FUZZED)
def test_mutated_tables_are_read_or_refused(corpus: Path, name: str) -> None:
    fuzz(corpus, name, 0, 100)


@pytest.mark.soak
@pytest.mark.parametrize("name", FUZZED)
def test_ten_thousand_mutated_tables_are_read_or_refused(corpus: Path, name: str) -> None:
    fuzz(corpus, name, 100, 10_000 // len(FUZZED) + 100)


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_opening_again_and_again_does_not_grow_the_process(corpus: Path, times: int) -> None:
    answer = in_a_child("leak", corpus / "h264.mp4", times, seconds=600)
    assert answer["grown_mb"] <= 10
