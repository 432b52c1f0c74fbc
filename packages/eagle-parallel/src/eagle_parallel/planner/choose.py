"""Which layout a pack should have, from its lengths alone: the one whose busiest rank finishes attention first.

Runs once for every pack: 1 ms for 512 documents over 8 ranks, 4 ms over 64; a pack seen lately is answered from memory. Not a
choice of the mesh; `search` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from eagle_parallel.planner.attention import AttentionTime, Heads, attention_time
from eagle_parallel.planner.hardware import Cluster
from eagle_parallel.planner.load import LAYOUTS, LayoutName, RankLoad, rank_load

# Near-ties, which the model is not exact enough to tell apart, go to a layout that balances work, and of these to the one that
# fetches the fewest keys: what is not sent is never late. Of the long-video pack it says 0.6 % less for balanced; a GPU took 1 %
# less (calibration.json).
_MARGIN = 1.01


@dataclass(frozen=True)
class _Heads:
    query_heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128


def choose_layout(
    lengths: Sequence[int],
    cp_ring: int,
    cp_ulysses: int,
    model_shape: Heads | None = None,
    *,
    cluster: Cluster | None = None,
) -> tuple[LayoutName, str]:
    """The layout with the shortest predicted attention, forward and backward, on the busiest rank.

    Weighs three costs: chunks shorter than a kernel tile of 128 rows (zigzag of short documents), imbalance of causal work
    (contiguous, a few whole documents), and keys that must be fetched (documents that are cut).

    Args:
        lengths: tokens of each document, in pack order; zeros are empty documents.
        cp_ring: ranks that gather or rotate keys.
        cp_ulysses: ranks that exchange heads.
        model_shape: heads; 28 query and 4 KV heads of 128 (Qwen2.5-7B) when None.
        cluster: GPUs and links; H200 nodes of eight when None.

    Returns:
        (layout, why): "zigzag", "balanced" (documents whole on one rank, the longest zigzagged) or "contiguous"; one sentence.

    Raises:
        ValueError: a length is negative or an axis is not positive.
    """
    for name, size in (("cp_ring", cp_ring), ("cp_ulysses", cp_ulysses)):
        if size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}.")
    if min(lengths, default=0) < 0:
        raise ValueError(f"lengths holds {min(lengths)}; pass the token count of every document, differences of cu_seqlens.")
    tokens = sum(lengths)
    if cp_ring == 1:
        return "contiguous", f"contiguous: with cp_ring=1 every rank attends to all {tokens} tokens, so nothing needs balancing."
    if tokens == 0:
        return "zigzag", "zigzag: the pack holds no tokens."
    shape = model_shape or _Heads()
    heads = _Heads(shape.query_heads, shape.kv_heads, shape.head_dim)
    if cluster is None:
        return _chosen_before(tuple(lengths), cp_ring, cp_ulysses, heads)
    return _choose(lengths, cp_ring, cp_ulysses, heads, cluster)


@lru_cache(maxsize=64)
def _chosen_before(lengths: tuple[int, ...], cp_ring: int, cp_ulysses: int, heads: _Heads) -> tuple[LayoutName, str]:
    """On the default cluster; the packs of an accumulated step are asked for again by whoever plans them twice."""
    return _choose(lengths, cp_ring, cp_ulysses, heads, _default_cluster())


def _choose(lengths: Sequence[int], cp_ring: int, cp_ulysses: int, heads: _Heads, cluster: Cluster) -> tuple[LayoutName, str]:
    tokens = sum(lengths)
    loads: dict[LayoutName, RankLoad] = {layout: rank_load(lengths, cp_ring, layout) for layout in LAYOUTS}
    times: dict[LayoutName, AttentionTime] = {
        layout: attention_time(heads, load, tokens, cp_ring, cp_ulysses, cluster, documents=len(lengths))
        for layout, load in loads.items()
    }
    fastest = min(time.total for time in times.values())
    near: list[LayoutName] = [layout for layout, time in times.items() if time.total <= fastest * _MARGIN]
    even: list[LayoutName] = [layout for layout in near if layout != "contiguous"] or near
    best = min(even, key=lambda layout: loads[layout].moved_tokens)  # the first of equals
    return best, _why(best, loads, times)


def _why(best: LayoutName, loads: dict[LayoutName, RankLoad], times: dict[LayoutName, AttentionTime]) -> str:
    """One sentence: the winner's predicted time, then for each layout time, imbalance, short chunks and fetched tokens."""
    order = sorted(LAYOUTS, key=lambda layout: layout != best)
    told = ", ".join(
        f"{layout} {times[layout].total * 1e3:.3g} ms (busiest rank {loads[layout].imbalance:.2f}x the mean work, "
        f"{loads[layout].short_rows:.0%} of tokens in cut chunks under 128 rows, {loads[layout].moved_tokens:.0f} tokens fetched)"
        for layout in order
    )
    return f"{best}: predicted attention of a layer, forward and backward: {told}."


@lru_cache(maxsize=1)
def _default_cluster() -> Cluster:
    return Cluster()
