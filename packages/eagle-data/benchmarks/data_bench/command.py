"""The command of the benchmark: which readers, which cases, how often; every measurement in a process of its own.

Promises: both videos are read once before the clock (warm cache); readers take turns, so that a slow minute hits all of them; a
row holds the median of the runs. A reader whose frames are wrong goes under the case's name with `_inexact` appended.
Not for: measuring itself (`worker.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_bench.answers import asked_of, mistaken, neighbourhoods
from data_bench.bounds import Packets, read_packets
from data_bench.cases import CASES, VIDEOS, Case
from data_bench.readers import EXACT_INDEX, READERS
from data_bench.record import Record, head_of
from data_bench.targets import judge

OURS = ("eagle", "eagle_pillow")
FOLDER = Path(__file__).parents[1]
CHECKED_SIZE = (448, 252)


@dataclass(frozen=True)
class Bench:
    """One run: the interpreters by reader, the folder of the videos, threads, runs and seconds a measurement may last."""

    pythons: dict[str, str]
    videos: Path
    threads: int
    runs: int
    limit: float
    ffmpeg: str

    def path(self, letter: str) -> str:
        return str(self.videos / VIDEOS[letter])

    @cached_property
    def packets(self) -> dict[str, Packets]:
        """What the bounds are counted from, by letter."""
        return {letter: read_packets(self.path(letter)) for letter in VIDEOS}

    def job(self, reader: str, case: Case, **more: Any) -> dict[str, Any]:
        """What `worker.measure` returns for one fresh process; RuntimeError with its last words when it fails or hangs."""
        asked = {"reader": reader, "path": self.path(case.video), "kind": case.kind, "frames": case.frames, "size": case.size}
        command = [self.pythons[reader], "-m", "data_bench.worker", json.dumps({**asked, "threads": self.threads, **more})]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=self.limit, env=environment(self.pythons[reader])
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"still running after {self.limit:.0f} s") from error
        except OSError as error:
            raise RuntimeError(f"its interpreter does not start ({error.strerror})") from error
        if done.returncode:
            words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise RuntimeError(words[:300])
        return json.loads(done.stdout.splitlines()[-1])


def environment(python: str) -> dict[str, str]:
    """Where the worker finds this package, and video-reader-rs its own libraries, which its wheel fails to."""
    libraries = Path(python).parent.parent.glob("lib/python*/site-packages/video_reader_rs.libs")
    found = {"PYTHONPATH": str(FOLDER), "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    return {**os.environ, **{name: value for name, value in found.items() if value}}


def answers_of(bench: Bench, record: Record, letters: Sequence[str]) -> set[tuple[str, str]]:
    """The (reader, letter) pairs whose frames are right; what is wrong goes to the record's failures."""
    right = set()
    for letter in letters:
        total = len(bench.packets[letter].display)
        asked = asked_of(total)
        near = neighbourhoods(bench.ffmpeg, bench.path(letter), asked, CHECKED_SIZE)
        for reader in bench.pythons:
            with tempfile.TemporaryDirectory() as folder:
                kept = Path(folder) / "frames.npy"
                try:
                    bench.job(reader, Case("check", "uniform", letter, len(asked)), indices=asked, keep=str(kept))
                    wrong = mistaken(np.load(kept), near, asked)
                except RuntimeError as error:
                    record.add_failure(f"frames of {letter}", reader, str(error))
                    continue
            if wrong:
                record.add_failure(f"frames of {letter}", reader, f"another frame was given for {wrong} of {asked}")
            else:
                right.add((reader, letter))
    return right


def measure(bench: Bench, record: Record, case: Case, right: set[tuple[str, str]]) -> None:
    """All readers on one case, in turns."""
    results: dict[str, list[dict[str, Any]]] = {reader: [] for reader in bench.pythons}
    if case.kind == "segment":
        for reader in [reader for reader in results if reader not in OURS]:
            record.add_absent(reader, "has no sampling by segment", case.name)
            del results[reader]
    for _ in range(bench.runs):
        for reader in list(results):
            try:
                results[reader].append(bench.job(reader, case))
            except RuntimeError as error:
                record.add_failure(case.name, reader, str(error))
                del results[reader]
    for reader, runs in results.items():
        if not runs:
            continue
        exact = (reader, case.video) in right and (case.kind != "open" or reader in EXACT_INDEX)
        if reader in OURS and case.kind == "segment":
            check_segments(bench, record, case, reader, runs[0]["indices"])
        for row in rows_of(bench, case, reader, runs, exact):
            record.add(row)
            print(f"{row['case']:22} {reader:16} {row['value']:9.4f} s  spread {row['spread']:.2f}{said_of(row)}", flush=True)


def check_segments(bench: Bench, record: Record, case: Case, reader: str, indices: list[int]) -> None:
    """Each frame of ours lies in its segment and is the frame that exact sampling gives for its number."""
    total = len(bench.packets[case.video].display)
    edges = [place * total / case.frames for place in range(case.frames + 1)]
    outside = [number for place, number in enumerate(indices) if not edges[place] - 1 < number < edges[place + 1]]
    with tempfile.TemporaryDirectory() as folder:
        kept = [str(Path(folder) / name) for name in ("segment.npy", "exact.npy")]
        again = bench.job(reader, case, keep=kept[0])["indices"]
        bench.job(reader, Case("check", "uniform", case.video, len(again), case.size), indices=again, keep=kept[1])
        differ = np.abs(np.load(kept[0]).astype(np.int16) - np.load(kept[1])).max() > 2
    if outside or differ or again != indices:
        reason = f"outside their segments: {outside}; {'not ' if differ else ''}the frames of their numbers"
        record.add_failure(case.name, reader, reason)


def rows_of(bench: Bench, case: Case, reader: str, runs: list[dict[str, Any]], exact: bool) -> list[dict[str, Any]]:
    """The row of a case, and with `memory_as` the row of the same runs' memory."""

    def middle(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    seconds = [run["seconds"] for run in runs]
    mark = "" if exact else "_inexact"
    row: dict[str, Any] = {
        "case": case.name + mark,
        "impl": reader,
        "shape": case.shape if case.frames else {"frames": len(bench.packets[case.video].display)},
        "value": middle("seconds"),
        "unit": "s",
        "runs": len(runs),
        "spread": (max(seconds) - min(seconds)) / middle("seconds"),
        "cpu_seconds": middle("cpu_seconds"),
        "read_bytes": int(middle("read_bytes")),
        "file_bytes": os.path.getsize(bench.path(case.video)),
    }
    if case.frames:
        bounds = bench.packets[case.video].bounds(runs[0]["indices"])
        row |= {"groups": bounds.groups, "bound_to_target": bounds.to_target, "bound_references": bounds.references}
        if runs[0]["decoded"] is not None:
            row["decoded"] = int(middle("decoded"))
    memory = {**row, "case": case.memory_as + mark, "peak_gib": middle("grown_bytes") / 2**30}
    return [*([row] if case.timed else []), *([memory] if case.memory_as else [])]


def said_of(row: dict[str, Any]) -> str:
    """Memory, frames decoded against both bounds, and the share of the file that was read, as far as a row has them."""
    words = f", grew {row['peak_gib'] * 2**30 / 1e6:.0f} MB" if "peak_gib" in row else ""
    if "decoded" in row:
        words += f", decoded {row['decoded']} (bounds {row['bound_to_target']} and {row['bound_references']})"
    return words + (f", read {row['read_bytes'] / row['file_bytes']:.2%}" if row["case"].startswith("open") else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the verdicts, and say by the exit code whether ours was right and whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="the commit that is measured")
    parser.add_argument("--videos", type=Path, required=True, help=f"folder with {' and '.join(VIDEOS.values())}")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="a reader and its interpreter")
    parser.add_argument("--cases", help="names, separated by commas; default all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds that one measurement may last")
    parser.add_argument("--ffmpeg", help="the program that tells the truth; default that of imageio-ffmpeg")
    given = parser.parse_args(arguments)
    names = given.cases.split(",") if given.cases else [case.name for case in CASES]
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        parser.error(
            f"--cases: no case {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys(c.name for c in CASES))}"
        )
    cases = [case for case in CASES if case.name in names or case.memory_as in names]
    peers = dict(peer.split("=", 1) for peer in given.peer)
    if set(peers) - set(READERS):
        parser.error(f"--peer: no reader {', '.join(sorted(set(peers) - set(READERS)))}; there are {', '.join(READERS)}")
    ffmpeg = given.ffmpeg or imageio_ffmpeg()
    bench = Bench({**dict.fromkeys(OURS, sys.executable), **peers}, given.videos, given.threads, given.runs, given.limit, ffmpeg)
    for letter in VIDEOS:
        Path(bench.path(letter)).read_bytes()
    record = Record(given.out, head_of(["packages/eagle-data/benchmarks/run.py", *(arguments or sys.argv[1:])], given.commit, {}))
    for reader in list(bench.pythons):
        try:
            answer = bench.job(reader, Case("version", "open", "A"))
            record.head["versions"][READERS[reader][1]] = answer["version"]
        except RuntimeError as error:
            record.add_absent(reader, str(error))
            del bench.pythons[reader]
    for reader in set(READERS) - set(OURS) - set(peers):
        record.add_absent(reader, "no --peer names its interpreter")
    right = answers_of(bench, record, sorted({case.video for case in cases}))
    for case in cases:
        measure(bench, record, case, right)
    for verdict in judge(record.rows):
        state = {True: "reached", False: "NOT REACHED", None: "not measured"}[verdict.reached]
        print(f"{verdict.case:16} {verdict.text}: {state} ({verdict.measured})")
    for line in record.failures:
        print(f"failed: {line['impl']} in {line['case']}: {line['error']}", file=sys.stderr)
    ours_failed = any(line["impl"] in OURS for line in (*record.failures, *record.absent))
    return 1 if ours_failed else 0


def imageio_ffmpeg() -> str:
    """The ffmpeg program of the imageio-ffmpeg package."""
    from imageio_ffmpeg import get_ffmpeg_exe  # pyright: ignore[reportMissingImports]

    return get_ffmpeg_exe()
