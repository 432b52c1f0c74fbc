"""Measure going on in the middle of a large epoch over prepared data on disk: seconds until the next pack is known, and memory.

    python packages/eagle-data/benchmarks/loader_resume.py --out FILE.json --commit SHA [--mix FILE.py] [--rows 10000000]

Two prepared datasets are written first (kept in `--corpus`, else in a folder that goes): lengths and tiles are those of the mix,
in groups of 128 rows; a row's tokens are four, all of them its number, so that the disk is not full of what is not measured. A
state is taken after `--packs` packs of the same rows without files. Every run is a fresh process with its imports done: it opens
the datasets, makes a loader, gives it the state and asks for a pack, which must be the one that came next. The files lie in the
page cache. `peak_gib` is the whole process at its highest, `bytes_a_row` what it grew by; `anonymous` leaves out pages of
files, which the system can take back.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from data_bench.record import Record, head_of
from eagle_data import __version__
from eagle_data.encode import Encoded
from eagle_data.loader import StatefulLoader
from eagle_data.media_index import PreparedMedia
from eagle_data.pack_loading import Source
from eagle_data.prepared import PreparedDataset
from eagle_data.prepared_rows import ROWS, facts_schema, integers, samples_schema, strings
from eagle_data.prepared_writer import Group, PreparedWriter
from packing_mix import load_mix


@dataclass
class Rows:
    """Lengths and tiles without samples behind them."""

    name: str
    lengths: np.ndarray
    tiles: np.ndarray
    media: PreparedMedia = field(default_factory=PreparedMedia)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[Encoded, str]:
        ids = np.full(int(self.lengths[row]), row % 1000, dtype=np.int32)
        return Encoded(ids, ids, ()), self.where(row)

    def where(self, row: int) -> str:
        return f"{self.name}:{row}"

    def degraded(self, row: int) -> bool:
        return False


def write(folder: Path, rows: Rows, context: int) -> None:
    """Prepare `rows` as if their records came from a file of the same name, counted from 0."""
    import pyarrow as pa

    with PreparedWriter(folder, [context]) as writer:
        for first in range(0, len(rows), ROWS):
            own = slice(first, first + ROWS)
            count = len(rows.lengths[own])
            numbers = np.arange(count)
            columns = [integers(numbers), integers(rows.lengths[own]), integers(rows.tiles[own]), strings([""] * count)]
            tokens = pa.ListArray.from_arrays(integers(np.arange(0, 4 * count + 1, 4)), integers(np.repeat(first + numbers, 4)))
            facts = pa.RecordBatch.from_arrays(columns, schema=facts_schema())
            samples = pa.RecordBatch.from_arrays([tokens, tokens, strings(["[]"] * count)], schema=samples_schema())
            digest = f"{first * 2654435761 % 2**32:08x}{rows.name}{first}"  # as good as random in its first digits
            writer.add_group(context, Group(rows.name, first, [facts], lambda samples=samples: [samples], digest, 1 << 10))


def memory() -> dict[str, int]:
    """Bytes resident of this process: all of them, and those that are not pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) << 10 for name, key in (("resident", "VmRSS"), ("anonymous", "RssAnon"))}


class Highest(threading.Thread):
    """The most of each kind of `memory` while it runs, looked at every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.stop = memory(), threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.002):
            self.most = {name: max(value, self.most[name]) for name, value in memory().items()}


def run_one(job: dict[str, Any]) -> dict[str, Any]:
    """Open, resume and get one pack, in this process."""
    import pyarrow.parquet  # noqa: F401

    before, highest = memory(), Highest()
    highest.start()
    begun = time.perf_counter()
    datasets = [PreparedDataset(Path(job["corpus"]) / name, job["settings"]["context_length"]) for name in ("a", "b")]
    opened = time.perf_counter()
    loader = StatefulLoader([Source(datasets[0], 1.5), Source(datasets[1])], **job["settings"])
    made = time.perf_counter()
    loader.load_state_dict(json.loads(job["state"]))
    samples = next(iter(loader)).samples
    resumed = time.perf_counter()
    highest.stop.set()
    highest.join()
    after = {name: max(value, highest.most[name]) for name, value in memory().items()}
    return {
        "peak": after["resident"],
        "where": [sample.where for sample in samples],
        "tokens": [int(sample.input_ids[0]) for sample in samples],
        "seconds": {"opened": opened - begun, "made": made - opened, "resumed": resumed - made, "all": resumed - begun},
        "memory": {name: after[name] - before[name] for name in before},
    }


def in_fresh_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, os.path.abspath(__file__), "--job", "-"]
    output = subprocess.run(command, check=True, input=json.dumps(job), stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", type=Path, default=Path(__file__).with_name("length_mix.py"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--packs", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_one(json.load(sys.stdin))))
        return 0
    if options.out is None or options.commit is None:
        parser.error("--out and --commit are needed")
    mix = load_mix(options.mix)
    lengths, tiles = (values.astype(np.int32) for values in mix.lengths(options.rows, 0))
    cut = options.rows * 7 // 10
    rows = [Rows("a", lengths[:cut], tiles[:cut]), Rows("b", lengths[cut:], tiles[cut:])]
    settings: dict[str, Any] = {
        "context_length": mix.CONTEXT,
        "tile_size": 8,
        "seed": 0,
        "global_batch": 64,
        "workers": 0,
        "max_tiles": 128,
    }
    first = StatefulLoader([Source(rows[0], 1.5), Source(rows[1])], **settings)
    stream = iter(first)
    for _ in range(options.packs):
        next(stream)
    state = json.dumps(first.state_dict())
    expected = [sample.where for sample in next(stream).samples]
    record = Record(options.out, head_of(sys.argv, options.commit, {"eagle-data": __version__, "numpy": np.__version__}))
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        begun = time.perf_counter()
        for one in rows:
            if not (corpus / one.name).is_dir():
                write(corpus / one.name, one, mix.CONTEXT)
        written = time.perf_counter() - begun
        job = {"corpus": str(corpus), "settings": settings, "state": state}
        runs = [in_fresh_process(job) for _ in range(options.runs)]
        size = sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file())
    assert all(run["where"] == expected for run in runs), "the pack after the state is the one that came next"
    assert all([f"{token}" for token in run["tokens"]] == [name.split(":")[1] for name in expected] for run in runs)
    cases = {"dataset_opened": "opened", "loader_made": "made", "loader_resumed": "resumed", "opened_and_resumed": "all"}
    for case, part in cases.items():
        values = [run["seconds"][part] for run in runs]
        median = float(np.median(values))
        row = {
            "case": case,
            "impl": "eagle",
            "shape": {"rows": options.rows, "packs": options.packs, "global_batch": 64},
            "value": median,
            "unit": "s",
            "runs": options.runs,
            "spread": (max(values) - min(values)) / median,
            "state_bytes": len(state),
        }
        if part == "all":
            row["peak_gib"] = max(run["peak"] for run in runs) / 2**30
            row["bytes_a_row"] = {name: max(run["memory"][name] for run in runs) / options.rows for name in runs[0]["memory"]}
            row["corpus_bytes"] = size
            row["write_seconds"] = written
        record.add(row)
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
