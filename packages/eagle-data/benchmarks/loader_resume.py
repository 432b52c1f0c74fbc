"""Measure going on in the middle of a large epoch: seconds until the next pack is known, and bytes of state.

    python packages/eagle-data/benchmarks/loader_resume.py --mix FILE.py --out FILE.json --commit SHA [--rows 10000000]

The rows are a mixture of two sources with lengths and tiles in memory, as a prepared dataset has them, and no media. The state is
taken after `--packs` packs; a new loader is made, given the state and asked for a pack. Wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--packs", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    mix = load_mix(options.mix)
    lengths, tiles = (values.astype(np.int32) for values in mix.lengths(options.rows, 0))
    cut = options.rows * 7 // 10
    sources = [Source(Rows("a", lengths[:cut], tiles[:cut]), 1.5), Source(Rows("b", lengths[cut:], tiles[cut:]))]
    settings: dict[str, Any] = {
        "context_length": mix.CONTEXT,
        "tile_size": 8,
        "seed": 0,
        "global_batch": 64,
        "workers": 0,
        "max_tiles": 128,
    }

    first = StatefulLoader(sources, **settings)
    stream = iter(first)
    for _ in range(options.packs):
        next(stream)
    state = json.dumps(first.state_dict())
    expected = [sample.where for sample in next(stream).samples]
    made, resumed = [], []
    for _ in range(options.runs):
        begun = time.perf_counter()
        loader = StatefulLoader(sources, **settings)
        made.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        loader.load_state_dict(json.loads(state))
        again = [sample.where for sample in next(iter(loader)).samples]
        resumed.append(time.perf_counter() - begun)
        assert again == expected, "the pack after the state is the one that came next"
    record = Record(options.out, head_of(sys.argv, options.commit, {"eagle-data": __version__, "numpy": np.__version__}))
    for case, values in (("loader_made", made), ("loader_resumed", resumed)):
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
        record.add(row)
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
