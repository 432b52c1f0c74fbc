"""Measure packing on a length mix: how full packs are, how fast they are made, how even the cost of a step is.

    python packages/eagle-data/benchmarks/packing_mix.py --out FILE.json --commit SHA [--mix FILE.py]

The mix is a Python file, `length_mix.py` without another, with `CONTEXT`, `lengths(n, seed)` (tokens and tiles of each sample)
and `cost(lengths, tiles)` of a pack, which is the judge of balance here. Rates are samples per second of this process's own
time on one core, with the order of the epoch, packing and dealing.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from data_bench.record import Record, head_of
from eagle_data import __version__
from eagle_data.pack_stream import PackStream, Place, StreamPlan


def load_mix(path: Path) -> ModuleType:
    spec = spec_from_file_location("mix", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(mix: ModuleType, *, samples: int, seed: int, max_tiles: int | None, ranks: int) -> dict[str, Any]:
    """One epoch of the mix: fill of both budgets, samples per second, mean of max / mean cost over the full steps."""
    lengths, tiles = mix.lengths(samples, seed)
    if max_tiles is not None:
        tiles = np.minimum(tiles, max_tiles)
    plan = StreamPlan(mix.CONTEXT, max_tiles, seed, ranks)
    begun = time.process_time()
    stream = PackStream([lengths], [tiles], [1.0], plan)
    place, packs = Place(group=ranks), []
    while place.epoch == 0:
        window = stream.window(place)
        packs += window.packs
        place = window.after
    seconds = time.process_time() - begun
    rows = [np.array([row for _, row, _ in stream.members(0, members)]) for members in packs]
    assert sorted(np.concatenate(rows).tolist()) == list(range(samples)), "every sample is in one pack"
    assert all(lengths[own].sum() <= mix.CONTEXT for own in rows)
    assert max_tiles is None or all(tiles[own].sum() <= max_tiles for own in rows)
    costs = np.array([mix.cost(lengths[own], int(tiles[own].sum())) for own in rows])

    def balance(values: np.ndarray) -> float:
        steps = values[: len(values) // ranks * ranks].reshape(-1, ranks)
        return float((steps.max(1) / steps.mean(1)).mean())

    return {
        "samples_per_second": samples / seconds,
        "packs": len(packs),
        "token_fill": float(lengths.sum() / (len(packs) * mix.CONTEXT)),
        "tile_fill": None if max_tiles is None else float(tiles.sum() / (len(packs) * max_tiles)),
        "balance": balance(costs),
        "balance_undealt": balance(np.random.default_rng(0).permutation(costs)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", type=Path, default=Path(__file__).with_name("length_mix.py"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="epochs of different seeds; the median is the value")
    options = parser.parse_args()
    mix = load_mix(options.mix)
    record = Record(options.out, head_of(sys.argv, options.commit, {"eagle-data": __version__, "numpy": np.__version__}))
    for max_tiles in (None, 128, 96, 64):
        runs = [
            measure(mix, samples=options.samples, seed=seed, max_tiles=max_tiles, ranks=options.ranks)
            for seed in range(options.runs)
        ]
        rates = [run["samples_per_second"] for run in runs]
        shape = {"samples": options.samples, "context_length": mix.CONTEXT, "max_tiles": max_tiles, "ranks": options.ranks}
        row = {
            "case": "packing_mix",
            "impl": "eagle",
            "shape": shape,
            "value": float(np.median(rates)),
            "unit": "samples/s",
            "runs": options.runs,
            "spread": (max(rates) - min(rates)) / float(np.median(rates)),
        }
        for name in ("packs", "token_fill", "tile_fill", "balance", "balance_undealt"):
            row[name] = None if runs[0][name] is None else float(np.mean([run[name] for run in runs]))
        record.add(row)
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
