"""Time and bytes of one layer's attention over a context-parallel group: kernels, exchanges, and what of them is exposed.

Ulysses (all-to-all of heads) inside, gathered or rotating keys and values outside. The exchange of heads is never hidden; the
gather is hidden behind the attention of the head group before it, the ring's hop behind the step before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal, Protocol

from eagle_parallel.planner.hardware import FLASH, Call, Cluster, Kernel
from eagle_parallel.planner.load import TILE_OVERHEAD, RankLoad
from eagle_parallel.planner.stages import StageCounts, stage_borders, stage_counts

Algorithm = Literal["gather_kv", "ring"]
ALGORITHMS: tuple[Algorithm, ...] = ("gather_kv", "ring")
_BYTES = 2  # bf16, on the wire as well
_MERGE_LAUNCHES = 4  # element-wise kernels after a ring step (assumed)
# Two figures solved from a fine-tuning pack whose documents all stay whole, and from the same pack with all of them cut (the two
# `rank` points of calibration.json that are marked as fitted). What a direction of ours takes beside the kernel:
_OWN_CALL = 3.0e-5
# Reads and writes of a packed row of K and V, forward and backward, as if at full bandwidth: copies of short runs and sums in
# float32 reach a part of it.
_INDEXED_PASSES = 10.7
_PLAIN_PASSES = 3  # where few documents mean few runs of rows: into segment order twice, dK and dV summed once
_FEW_DOCUMENTS = 4


class Heads(Protocol):
    """The part of `eagle_parallel.ModelShape` that is read here."""

    @property
    def query_heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


@dataclass(frozen=True)
class HeadShare:
    """Heads of the busiest Ulysses rank: query heads that it attends with, KV heads that it must hold; fewest_kv of any rank."""

    query: int
    kv: int
    fewest_kv: int


@lru_cache(maxsize=1024)
def head_share(query_heads: int, kv_heads: int, ulysses: int) -> HeadShare:
    """Query heads dealt as runs as even as possible, KV heads copied to every rank whose queries read them."""
    group = query_heads // kv_heads
    borders = [query_heads * rank // ulysses for rank in range(ulysses + 1)]
    kv = [(high - 1) // group - low // group + 1 if high > low else 0 for low, high in pairwise(borders)]
    return HeadShare(-(-query_heads // ulysses), max(kv), min(kv))


@dataclass(frozen=True)
class Volume:
    """Bytes that the busiest rank receives in one layer, forward and backward, by exchange (section 3.1 of the design sheet)."""

    ulysses_forward: float
    ulysses_backward: float
    ring_forward: float
    ring_backward: float

    @property
    def total(self) -> float:
        return self.ulysses_forward + self.ulysses_backward + self.ring_forward + self.ring_backward


def volume(shape: Heads, local_tokens: float, moved_tokens: float, ulysses: int) -> Volume:
    """Received bytes of one layer.

    Args:
        shape: heads of the model.
        local_tokens: tokens that a rank owns.
        moved_tokens: tokens of other ring ranks whose keys the rank needs, `RankLoad.moved_tokens`.
        ulysses: ranks that exchange heads.
    """
    share = head_share(shape.query_heads, shape.kv_heads, ulysses)
    row = shape.head_dim * _BYTES
    # q, k, v of the others' tokens for own heads, then out of the others' heads for own tokens; backward sends the transposes.
    heads_in = (ulysses - 1) * (share.query + 2 * share.kv)
    heads_back = shape.query_heads - share.query
    exchanged = float(local_tokens * row * (heads_in + heads_back)) if ulysses > 1 else 0.0
    gathered = float(moved_tokens * row * 2 * share.kv)
    # Backward returns dK and dV, and gathers again what was not kept.
    again = 0.0 if stage_counts(gathered, share.fewest_kv).keeps else gathered
    return Volume(exchanged, exchanged, gathered, gathered + again)


@dataclass(frozen=True)
class AttentionTime:
    """Seconds of one layer's attention on the busiest rank.

    forward, backward: all of it. kernel_forward, kernel_backward: the attention kernel alone. exposed_ring, exposed_ulysses:
    wire time of one forward and backward that nothing hides; exposed_ring_forward is the first's part of forward. copies: moving
    rows in memory and launches around the kernel, of one forward and backward. head_groups: stages of the gather, forward and
    backward.
    """

    forward: float
    backward: float
    kernel_forward: float
    kernel_backward: float
    exposed_ring: float
    exposed_ring_forward: float
    exposed_ulysses: float
    copies: float
    head_groups: StageCounts

    @property
    def total(self) -> float:
        return self.forward + self.backward


def attention_time(
    shape: Heads,
    load: RankLoad,
    pack_tokens: int,
    ring: int,
    ulysses: int,
    cluster: Cluster,
    *,
    kernel: Kernel = FLASH,
    algorithm: Algorithm = "gather_kv",
    documents: int = 1,
) -> AttentionTime:
    """Predict one layer's attention.

    Args:
        shape: heads of the model.
        load: of the busiest ring rank, `rank_load(lengths, ring, layout)`.
        pack_tokens: tokens of the pack.
        ring: ranks that gather or rotate keys and values, cp_ring.
        ulysses: ranks that exchange heads, innermost, cp_ulysses.
        cluster: GPUs and links.
        kernel: attention kernel; one that is not varlen is called once for every document.
        algorithm: what happens over the ring axis.
        documents: documents of the pack.
    """
    share = head_share(shape.query_heads, shape.kv_heads, ulysses)
    row = shape.head_dim * _BYTES
    local = pack_tokens / (ring * ulysses)
    moved = volume(shape, local, load.moved_tokens, ulysses)
    device = cluster.device

    exposed_ulysses = 0.0
    copies = 0.0
    if ulysses > 1:
        inward = cluster.seconds("all_to_all", local * row * (share.query + 2 * share.kv), ulysses)
        outward = cluster.seconds("all_to_all", local * row * share.query, ulysses)
        exposed_ulysses = 2 * (inward + outward)
        copies += 4 * 2 * moved.ulysses_forward / device.memory_bandwidth  # packed and unpacked, read + written, both directions
    whole = max(0, documents - load.cut_documents) / ring  # documents that lie on one rank are dealt to all
    extra = max(0.0, load.cut_documents + whole - 1) * kernel.document_call
    own = 2 * _OWN_CALL if ring * ulysses > 1 else 0.0
    if load.moved_tokens and ring > 1:
        extra += kernel.splitting(load.cut_documents, load.query_rows, share.query, shape.head_dim, device)
    if ring == 1 or load.moved_tokens == 0:
        forward = _kernel(kernel, load, share.query, shape, cluster, backward=False) + extra
        backward = _kernel(kernel, load, share.query, shape, cluster, backward=True) + extra
        timing = (forward, backward, forward, backward, StageCounts(1, 1))
    elif algorithm == "gather_kv":
        passes = _PLAIN_PASSES if documents <= _FEW_DOCUMENTS else _INDEXED_PASSES
        copies += passes * 2 * load.key_rows * row * 2 * share.kv / device.memory_bandwidth
        groups = stage_counts(moved.ring_forward, share.fewest_kv)
        timing = _gathered(kernel, load, share, groups, shape, ring, ulysses, cluster, extra)
    else:
        # Every further step merges in fp32 (read, written, the part read: 10 bytes): out forward, dq and dk, dv backward.
        merged = local * ulysses * shape.head_dim * 2 * (share.query + share.kv)
        copies += (ring - 1) * merged * 10 / device.memory_bandwidth
        timing = _rotated(kernel, load, share, shape, ring, ulysses, cluster, extra)
    forward, backward, kernel_forward, kernel_backward, groups = timing
    copies += own
    half = (exposed_ulysses + copies) / 2
    return AttentionTime(
        forward + half,
        backward + half,
        kernel_forward,
        kernel_backward,
        max(0.0, forward - kernel_forward) + max(0.0, backward - kernel_backward),
        max(0.0, forward - kernel_forward),
        exposed_ulysses,
        copies,
        groups,
    )


def _kernel(kernel: Kernel, load: RankLoad, heads: int, shape: Heads, cluster: Cluster, *, backward: bool) -> float:
    call = Call(load.pairs, load.longest, load.query_rows, load.key_rows, heads, shape.head_dim)
    return kernel.seconds(call, cluster.device, backward=backward)


def _gathered(
    kernel: Kernel,
    load: RankLoad,
    share: HeadShare,
    groups: StageCounts,
    shape: Heads,
    ring: int,
    ulysses: int,
    cluster: Cluster,
    extra: float,
) -> tuple[float, float, float, float, StageCounts]:
    """Stages of heads in a pipeline of two buffers: one attends while the next is gathered and the one before returned."""
    each = load.moved_tokens / (ring - 1) * shape.head_dim * _BYTES * 2

    def stages(count: int, backward: bool) -> list[tuple[float, float, float]]:
        """(gather, kernel, return) of every stage that has heads."""
        found = []
        for size in (end - start for start, end in pairwise(stage_borders(share.kv, count)) if end > start):
            heads = -(-share.query * size // share.kv)
            compute = _kernel(kernel, load, heads, shape, cluster, backward=backward) + extra
            gather = cluster.seconds("all_gather", each * size, ring, ulysses)
            found.append((gather, compute, cluster.seconds("all_to_all", each * size, ring, ulysses)))
        return found

    there, back = stages(groups.forward, False), stages(groups.backward, True)
    forward = there[0][0] + there[-1][1]
    forward += sum(max(compute, gather) for (_, compute, _), (gather, _, _) in pairwise(there))
    first = 0.0 if groups.keeps else back[0][0]
    backward = first + back[-1][1] + back[-1][2]
    backward += sum(max(compute, gather + home) for (_, compute, home), (gather, _, _) in pairwise(back))
    kernels = [sum(compute for _, compute, _ in each_way) for each_way in (there, back)]
    return forward, backward, kernels[0], kernels[1], groups


def _rotated(
    kernel: Kernel,
    load: RankLoad,
    share: HeadShare,
    shape: Heads,
    ring: int,
    ulysses: int,
    cluster: Cluster,
    extra: float,
) -> tuple[float, float, float, float, StageCounts]:
    """`ring` steps; K and V hop while the step attends, in backward dK and dV hop as well.

    Every step is a kernel call of its own: it starts every query tile again, drains its own tail and launches its merges.
    """
    each = load.moved_tokens / (ring - 1) * shape.head_dim * _BYTES * 2 * share.kv
    hop = cluster.seconds("send_receive", each, ring, ulysses)
    hop_twice = cluster.seconds("send_receive", 2 * each, ring, ulysses)
    again = TILE_OVERHEAD * load.query_rows
    step = replace(
        load, pairs=load.pairs / ring + again, longest=-(-load.longest // ring), key_rows=load.query_rows, cut_documents=0
    )
    extra += _MERGE_LAUNCHES * cluster.device.launch
    forward = _kernel(kernel, step, share.query, shape, cluster, backward=False) + extra
    backward = _kernel(kernel, step, share.query, shape, cluster, backward=True) + extra
    return (
        (ring - 1) * max(forward, hop) + forward,
        (ring - 1) * max(backward, hop_twice) + backward + hop,  # the last hop brings dK and dV home
        ring * forward,
        ring * backward,
        StageCounts(1, 1),
    )
