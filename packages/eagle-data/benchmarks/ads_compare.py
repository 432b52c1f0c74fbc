"""What Automatic Degradation Sampling keeps, beside fixed numbers of frames and plain truncation, on a made mix of samples.

    python packages/eagle-data/benchmarks/ads_compare.py --out FILE.json --commit SHA [--tokenizer FOLDER]

The rivals choose their frames first (a fixed number, or 2 a second), cut every image and page into up to 12 tiles, put the text
behind the pictures and cut the sequence at the context length, as training code without degradation does. Kept and lost tokens
are counted on the very prompts; a wrapper counts as visual. `ads_tables.py` makes the documentation's page of the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ads_corpus import Item, item, load_tokenizer
from data_bench.record import Record, head_of
from eagle_data.ads import Planner, VisualPlan, VisualRules
from eagle_data.ads_bound import optimum
from eagle_data.encode import IGNORE, encode
from eagle_data.errors import SampleError
from eagle_data.special_tokens import IMG_CONTEXT, IMG_END
from eagle_data.tokens import PromptTokenizer

CONTEXTS = (32768, 65536, 131072)
FIXED = (8, 32, 128)
ENDLESS = 1 << 40


@dataclass
class Kept:
    """Sums over the samples that were planned: tokens of text, of answers, and visual ones, wrappers included.

    `visual_budget` is what would fit beside the whole text, or what is wished if that is less; `tiles` and `optimum_tiles` are
    those of the plans and of the optimum of Eq. 2; `least_used` is the least share of its budget that a sample with fewer frames
    than wished uses, `least_used_tiled` the same of samples with all their frames and fewer tiles.
    """

    samples: int = 0
    rejected: int = 0
    text: int = 0
    text_lost: int = 0
    answers_cut: int = 0
    visual: int = 0
    visual_budget: int = 0
    tiles: int = 0
    optimum_tiles: int = 0
    least_used: float = 1.0
    least_used_tiled: float = 1.0


def mix(seed: int, samples: int) -> dict[str, list[Item]]:
    """As many samples of every kind; the names say what they hold."""
    rng = np.random.default_rng(seed)
    each = max(1, samples // 6)
    return {
        "one video": [item(rng, i, videos=1, longest=3600) for i in range(each)],
        "one video, long text": [item(rng, i, videos=1, words=3000, longest=3600) for i in range(each)],
        "two or three videos": [item(rng, i, videos=int(rng.integers(2, 4)), longest=1800) for i in range(each)],
        "video and images": [item(rng, i, videos=1, images=int(rng.integers(1, 7)), longest=1800) for i in range(each)],
        "many images": [item(rng, i, images=int(rng.integers(4, 25))) for i in range(each)],
        "document": [item(rng, i, pages=int(rng.integers(4, 120))) for i in range(each)],
    }


def exact_frames(planner: Planner, wished: tuple[int, ...]) -> VisualPlan:
    """The plan that shows exactly `wished` frames of each video and every page and image at 12 tiles."""
    planner.floors = planner.wishes = wished
    return planner.plan(ENDLESS)


def strategies(one: Item, rules: VisualRules, tokenizer: PromptTokenizer) -> dict[str, Callable[[int], VisualPlan]]:
    """Plan-makers by name; all but the first ignore the context length."""

    def fixed(count: int) -> VisualPlan:
        planner = one.planner(rules, tokenizer)
        frames = tuple(min(count, info.frames) for info in one.infos)
        return exact_frames(planner, (*frames, *map(len, one.pages)))

    def truncated() -> VisualPlan:
        planner = one.planner(rules, tokenizer)
        return exact_frames(planner, planner.wishes)

    named: dict[str, Callable[[int], VisualPlan]] = {"ADS": one.planner(rules, tokenizer).plan}
    for count in FIXED:
        if one.infos or count == FIXED[0]:
            named[f"{count} frames"] = _once(lambda count=count: fixed(count))
    named["2 frames a second"] = _once(truncated)
    return named


def _once(make: Callable[[], VisualPlan]) -> Callable[[int], VisualPlan]:
    made: list[VisualPlan] = []

    def plan(_: int) -> VisualPlan:
        if not made:
            made.append(make())
        return made[0]

    return plan


@dataclass(frozen=True)
class Layout:
    """Where tokens end up in a prompt: the positions of the text behind the pictures and of the answer, and the length."""

    text: np.ndarray
    answer: np.ndarray
    length: int


def layout(one: Item, plan: VisualPlan, rules: VisualRules, tokenizer: PromptTokenizer) -> Layout:
    """The prompt's layout, found by encoding it with one context token a tile and spreading those out."""
    encoded = encode(one.sample, plan, rules=replace(rules, tokens_per_tile=1), tokenizer=tokenizer)
    ids = encoded.input_ids
    sizes = np.where(ids == tokenizer.special[IMG_CONTEXT], rules.tokens_per_tile, 1)
    starts = np.cumsum(sizes) - sizes
    pictures_end = np.flatnonzero(ids == tokenizer.special[IMG_END])[-1]
    return Layout(starts[pictures_end + 1 :], starts[encoded.labels != IGNORE], int(sizes.sum()))


def count(kept: Kept, shown: Layout, text: int, wished: int, context: int) -> float:
    """Add one sample of `text` tokens and `wished` length, cut at `context`; gives the used share of its visual budget."""
    lost = int((shown.text >= context).sum())
    visual, budget = min(shown.length, context) - (text - lost), min(wished, context) - text
    kept.samples += 1
    kept.text += text
    kept.text_lost += lost
    kept.answers_cut += bool((shown.answer >= context).any())
    kept.visual += visual
    kept.visual_budget += budget
    return visual / budget


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--samples", type=int, default=600)
    options = parser.parse_args()
    rules, tokenizer = VisualRules(), load_tokenizer(options.tokenizer, PromptTokenizer)
    record = Record(options.out, head_of(sys.argv, options.commit, {}))
    for case, items in mix(0, options.samples).items():
        sums: dict[tuple[str, int], Kept] = {}
        for one in items:
            planner = one.planner(rules, tokenizer)
            wished, text = planner.length(planner.wishes, rules.max_tiles), planner.text_tokens()
            for name, make in strategies(one, rules, tokenizer).items():
                made: Layout | None = None
                for context in CONTEXTS:
                    kept = sums.setdefault((name, context), Kept())
                    try:
                        plan = make(context)
                    except SampleError:
                        kept.rejected += 1
                        continue
                    if made is None or name == "ADS":
                        made = layout(one, plan, rules, tokenizer)
                    used = count(kept, made, text, wished, context)
                    if name == "ADS":
                        assert made.length == plan.length <= context
                        kept.tiles += plan.tiles
                        kept.optimum_tiles += optimum(planner, context)
                        if "frames" in plan.degraded:
                            kept.least_used = min(kept.least_used, used)
                        elif plan.degraded:
                            kept.least_used_tiled = min(kept.least_used_tiled, used)
        for (name, context), kept in sorted(sums.items(), key=lambda entry: entry[0][1]):
            own = ("tiles", "optimum_tiles", "least_used", "least_used_tiled")
            values = {key: value for key, value in vars(kept).items() if name == "ADS" or key not in own}
            lost, used = kept.text_lost / max(1, kept.text), kept.visual / max(1, kept.visual_budget)
            shape = {"context": context}
            record.add({"case": case, "impl": name, "shape": shape, "value": lost, "unit": "share of text lost", **values})
            print(f"{case:22} {context:7} {name:18} lost {lost:6.1%} used {used:6.1%} rejected {kept.rejected}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
