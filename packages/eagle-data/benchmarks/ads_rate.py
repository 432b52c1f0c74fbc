"""How many samples a second Automatic Degradation Sampling plans on one core.

    python packages/eagle-data/benchmarks/ads_rate.py --out FILE.json --commit SHA [--tokenizer FOLDER]

`plan_*` has the texts tokenised before the clock starts: preparation tokenises a text once and both planning and encoding use it.
`plan_and_tokenise_*` starts with nothing. No size, text or duration repeats, and memories of earlier runs are emptied.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from ads_corpus import Item, item, load_tokenizer
from data_bench.record import Record, head_of
from eagle_data import ads
from eagle_data.ads import VisualRules
from eagle_data.ads_headers import frame_table
from eagle_data.errors import SampleError
from eagle_data.tokens import PromptTokenizer

RUNS = 5


class Remembering(PromptTokenizer):
    """Gives the ids of a text it has seen from memory."""

    remembered: dict[str, list[int]] | None = None

    def encode_text(self, text: str) -> list[int]:
        if self.remembered is None:
            return super().encode_text(text)
        if text not in self.remembered:
            self.remembered[text] = super().encode_text(text)
        return self.remembered[text]


def corpora(seed: int, samples: int) -> dict[str, list[Item]]:
    """The cases: videos, documents, and the rest as fine-tuning mixes have it (34 % text, 57 % one image, 9 % several)."""
    rng = np.random.default_rng(seed)
    counts = np.where(
        rng.random(samples) < 0.34, 0, np.where(rng.random(samples) < 0.86, 1, rng.integers(2, 8, samples))
    ).tolist()
    return {
        "video": [item(rng, i, videos=1) for i in range(samples)],
        "three_videos": [item(rng, i, videos=3) for i in range(samples)],
        "video_and_images": [item(rng, i, videos=1, images=2) for i in range(samples)],
        "other": [item(rng, i, images=n) for i, n in enumerate(counts)],
        "document": [item(rng, i, pages=int(rng.integers(2, 60))) for i in range(samples // 4)],
    }


def seconds(items: list[Item], context: int, rules: VisualRules, tokenizer: PromptTokenizer) -> float:
    """CPU seconds to plan all items once."""
    ads._image_plan.cache_clear()
    start = time.process_time()
    for one in items:
        try:
            one.planner(rules, tokenizer).plan(context)
        except SampleError:
            continue
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--contexts", type=int, nargs="+", default=[32768, 131072])
    options = parser.parse_args()
    rules = VisualRules()
    record = Record(options.out, head_of(sys.argv, options.commit, {}))
    for case, items in corpora(0, options.samples).items():
        for context in options.contexts:
            for start in ("plan", "plan_and_tokenise"):
                times = []
                for run in range(RUNS + 1):
                    tokenizer = load_tokenizer(options.tokenizer, Remembering)
                    frame_table(tokenizer, rules.dialect)
                    if start == "plan":
                        tokenizer.remembered = {}
                        seconds(items, context, rules, tokenizer)
                    taken = seconds(items, context, rules, tokenizer)
                    times += [taken] if run else []
                rates = sorted(len(items) / taken for taken in times)
                value = statistics.median(rates)
                row = {
                    "case": f"{start}_{case}",
                    "impl": "eagle",
                    "shape": {"context": context, "samples": len(items)},
                    "value": value,
                    "unit": "samples/s",
                    "runs": RUNS,
                    "spread": (rates[-1] - rates[0]) / value,
                }
                record.add(row)
                print(f"{row['case']:32} {context:7} {value:9.0f} samples/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
