"""Time the launch shapes of every kernel at the benchmark's shapes and print the fastest of each.

    python packages/eagle-kernels/benchmarks/sweep.py [rms_norm rope gated_unit cross_entropy]

For choosing the defaults in `eagle_kernels.kernels`; the measured result of what was chosen comes from run.py. Needs a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from eagle_kernels.kernels import cross_entropy, gated_unit, rms_norm, rope
from eagle_kernels.ops.row_loss import LossTerms
from triton.testing import do_bench

ROWS, HIDDEN, INTERMEDIATE, VOCAB = 32768, 3584, 18944, 152064


Config = TypeVar("Config")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def rank(title: str, moved: int, configs: Iterable[Config], launch: Callable[[Config], object], best: int = 5) -> None:
    """Print the `best` fastest configs in TB/s for `moved` bytes, and the slowest; a config that does not fit is counted."""
    timed, refused = [], 0
    for config in configs:
        try:
            milliseconds: Any = do_bench(partial(launch, config), warmup=15, rep=60, return_mode="median")
            timed.append((moved / milliseconds / 1e9, config))
        except Exception as error:
            if "out of resource" not in str(error):
                raise
            refused += 1
    timed.sort(key=lambda pair: -pair[0])
    print(f"\n{title} ({len(timed)} timed, {refused} do not fit)")
    for rate, config in (*timed[:best], timed[-1]):
        print(f"  {rate:.3f} TB/s  {config}", flush=True)


def sweep_rms_norm() -> None:
    x, residual, weight, grad = noise(ROWS, HIDDEN), noise(ROWS, HIDDEN), noise(HIDDEN), noise(ROWS, HIDDEN)
    rstd = rms_norm.forward(x, None, weight, 1e-6)[2]
    size = x.numel() * 2
    walks = [rms_norm.RowConfig(1, w, s, p) for w, s, p in product((4, 8, 16), (1, 2, 3), (2, 4, 8))]
    single = [rms_norm.RowConfig(rows, w, 1, ROWS) for rows, w in ((1, 2), (1, 4), (1, 8), (2, 16))]
    configs = walks + single
    rank("rms_norm forward", 2 * size, configs, lambda c: rms_norm.forward(x, None, weight, 1e-6, c))
    rank("add_rms_norm forward", 4 * size, configs, lambda c: rms_norm.forward(x, residual, weight, 1e-6, c))
    rank("rms_norm backward", 3 * size, walks, lambda c: rms_norm.backward(grad, None, x, weight, rstd, c))
    rank("add_rms_norm backward", 4 * size, walks, lambda c: rms_norm.backward(grad, residual, x, weight, rstd, c))


def sweep_rope() -> None:
    cos, sin = noise(1, ROWS, 128), noise(1, ROWS, 128)
    inv_freq = 1e6 ** (-torch.arange(64, device="cuda") / 64)
    positions = torch.arange(ROWS, device="cuda")[None]
    sources = {"tables": rope.Tables(cos, sin), "positions": rope.Positions(positions, inv_freq, 1.0, None)}
    by_head = [noise(1, heads, ROWS, 128) for heads in (28, 4)]
    by_token = [noise(1, ROWS, heads, 128).transpose(1, 2) for heads in (28, 4)]
    tiles = {
        "heads": (by_head, [(8, 1, 2), (16, 1, 4), (32, 1, 4), (32, 1, 8), (64, 1, 8), (64, 1, 16)], (1, 2, 4)),
        "tokens": (by_token, [(1, 8, 2), (1, 8, 4), (1, 16, 4), (1, 32, 2), (4, 4, 4)], (1, 2)),
    }
    for (name, source), (major, ((q, k), shapes, groups)) in product(sources.items(), tiles.items()):
        configs = [rope.RopeConfig(t, h, w, g) for (t, h, w), g in product(shapes, groups)]
        moved = 4 * (q.numel() + k.numel())
        rank(f"rope from {name}, {major} outermost", moved, configs, partial(rope.rotate, q, k, source, False))


def sweep_gated_unit() -> None:
    grad, gate, up = (noise(ROWS // 2, INTERMEDIATE) for _ in range(3))
    configs = [gated_unit.LineConfig(b, w) for b, w in ((512, 2), (512, 4), (1024, 4), (1024, 8), (2048, 4), (2048, 8))]
    rank("swiglu forward", 6 * gate.numel(), configs, lambda c: gated_unit.forward(gate, up, False, c))
    rank("swiglu backward", 10 * gate.numel(), configs, lambda c: gated_unit.backward(grad, gate, up, False, c))


def sweep_cross_entropy() -> None:
    """Bytes counted as one read and one write of the logits: the second read should come from the L2 cache."""
    logits, labels, terms = noise(4096, VOCAB), torch.randint(VOCAB, (4096,), device="cuda"), LossTerms(vocab=VOCAB)
    shapes = [(4096, 4, 16), (8192, 1, 32), (8192, 2, 32), (8192, 4, 32), (16384, 2, 32)]
    evictions = [("", ""), ("evict_last", "evict_first"), ("evict_last", ""), ("", "evict_first")]
    configs = [cross_entropy.CrossEntropyConfig(b, u, w, e) for (b, u, w), e in product(shapes, evictions)]
    launch = partial(cross_entropy.losses_and_gradients, logits, labels, None, terms, True)
    rank("cross_entropy of 4096 rows", 4 * logits.numel(), configs, launch)


if __name__ == "__main__":
    sweeps = {name[6:]: function for name, function in list(globals().items()) if name.startswith("sweep_")}
    for name in sys.argv[1:] or sweeps:
        sweeps[name]()
