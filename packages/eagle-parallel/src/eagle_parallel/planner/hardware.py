"""What one GPU and its links can do, as small tables of rates: the only place where the planner holds a measured figure.

A rate comes from the points of `calibration.json` or is marked as assumed. Values are SI: bytes, seconds, operations a second.
Not a simulator of a network: a link is a curve of time over message size, and links of different kinds work at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Collective = Literal["all_gather", "all_to_all", "send_receive"]
MIB = 2**20
TILE = 128  # rows of queries that one block of an attention kernel computes (FlashAttention-2 and cuDNN at head_dim 128)


@dataclass(frozen=True)
class KernelRate:
    """One direction of an attention kernel: `flops` once the GPU is full, `tail` of the longest tile spent draining it.

    time = (work + tail x longest tile on every multiprocessor) / flops + rows moved / bandwidth. The last term follows from what
    the algorithm reads and writes for a row of queries and of keys, in bytes for each query head and unit of head_dim; the first
    two figures were solved from one document of 8K and of 32K tokens, so the error on these is zero by construction.
    """

    flops: float
    tail: float
    query_bytes: float
    key_bytes: float

    def seconds(self, call: Call, operations: float, device: Device) -> float:
        """Time of one call; `operations` are the floating-point operations of a pair for each unit of head_dim."""
        drained = self.tail * TILE * call.longest * device.multiprocessors
        worked = (call.pairs * call.heads + drained) * operations * call.head_dim / self.flops
        moved = (call.queries * self.query_bytes + call.keys * self.key_bytes) * call.heads * call.head_dim
        return worked + moved / device.memory_bandwidth + device.launch


@dataclass(frozen=True)
class Call:
    """What a kernel is asked for, over `heads` query heads of `head_dim`.

    pairs: (query, key) pairs of one head, rounded up to tiles, as `RankLoad.pairs`. longest: keys that the longest query tile
    visits. queries, keys: rows, a key row once for every run of queries that sees it.
    """

    pairs: float
    longest: int
    queries: float
    keys: float
    heads: int
    head_dim: int


@dataclass(frozen=True)
class Kernel:
    """An attention kernel: forward and backward rates and whether one call takes a whole pack of documents.

    One that is not varlen (cuDNN) is called once for every document, `document_call` seconds for each further one of a direction,
    and computes queries that see earlier keys as two calls: `split_call` seconds for each further call of a direction, and
    `split_bytes` for each unit of a query row that is then joined.
    """

    name: str
    forward: KernelRate
    backward: KernelRate
    varlen: bool
    document_call: float = 0.0
    split_call: float = 0.0
    split_bytes: float = 0.0

    def seconds(self, call: Call, device: Device, *, backward: bool) -> float:
        """Time of one call; backward counts 2.5 forwards of operations (five matrix products instead of two)."""
        rate, operations = (self.backward, 10.0) if backward else (self.forward, 4.0)
        return rate.seconds(call, operations, device)

    def splitting(self, documents: float, queries: float, heads: int, head_dim: int, device: Device) -> float:
        """What cut documents add to one direction: two more calls for each (a rank has its head and tail), and the joins."""
        joined = queries * heads * head_dim * self.split_bytes / device.memory_bandwidth
        return 2 * documents * self.split_call + joined


# Bytes of bf16 that a FlashAttention-2 pass moves: forward reads q and writes out; backward reads out and its gradient twice
# over, clears, converts and writes dq (fp32 on the way: 4 + 4 + 2), and writes and sums dk and dv for every query head.
_FORWARD_BYTES, _BACKWARD_BYTES = (4.0, 0.0), (18.0, 8.0)

# H200, torch 2.11, causal, 28/4 heads of 128: 8192 and 32768 tokens (calibration.json), solved for (flops, tail); see
# tests/planner/test_calibration.py. TFLOP/s there: flash varlen 311/341 and 282/321, cuDNN 553/591 and 478/522. cuDNN's splits
# are charged a launch and a bf16 join (two parts read, one written); no constant was solved for them. What a call for one more
# document takes was solved from the bare calls of one fine-tuning pack.
FLASH = Kernel("flash", KernelRate(351.9e12, 0.515, *_FORWARD_BYTES), KernelRate(336.4e12, 0.746, *_BACKWARD_BYTES), varlen=True)
CUDNN = Kernel(
    "cudnn",
    KernelRate(603.7e12, 0.125, *_FORWARD_BYTES),
    KernelRate(538.2e12, 0.081, *_BACKWARD_BYTES),
    varlen=False,
    document_call=2e-5,
    split_call=6e-6,
    split_bytes=6.0,
)
KERNELS: Mapping[str, Kernel] = MappingProxyType({"flash": FLASH, "cudnn": CUDNN})


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are what large operations reach, not the data sheet's, except `peak_flops` (the MFU's base)."""

    name: str
    memory: float
    peak_flops: float
    matmul_flops: float
    memory_bandwidth: float
    host_bandwidth: float
    multiprocessors: int
    launch: float
    elementwise_share: float = 0.8  # of memory_bandwidth: fused norms, SwiGLU and RoPE reach 2.8-4.0 of 4.27 TB/s (same sheet)
    head_flops: float = 647e12  # head and loss of eagle-kernels, 6 N H V operations: 165.6 ms at 32768 tokens (calibration.json)
    tile_forward: float = 2.82e-3  # one vision tile of 1024 patches through SigLIP2-So400m, of 64 at once
    tile_backward: float = 5.33e-3  # same run: 522 ms for both directions of 64 tiles


H200 = Device(
    name="NVIDIA H200",
    memory=139 * 2**30,  # of 141 GB, what a process can allocate
    peak_flops=989e12,  # bf16 dense, data sheet
    matmul_flops=700e12,  # 8192^3 gave 680 in the run of calibration.json and 770-800 on other days; large layers sustain 700
    memory_bandwidth=4.27e12,  # device-to-device copy, read + written
    host_bandwidth=55e9,  # pinned copies, each way
    multiprocessors=132,
    launch=6e-6,  # assumed: one kernel launched from Python, not hidden
)


@dataclass(frozen=True)
class Link:
    """Seconds to receive a message, by size: a power law between measured (bytes, seconds), constant bandwidth past the last.

    Below the first point the law of the first interval goes on, down to `latency`. One point means constant bandwidth.
    """

    points: tuple[tuple[float, float], ...]
    latency: float

    def seconds(self, size: float) -> float:
        """Time until `size` bytes have arrived; 0 for none."""
        if size <= 0:
            return 0.0
        last_size, last_seconds = self.points[-1]
        if len(self.points) == 1:
            return self.latency + last_seconds * size / last_size
        if size >= last_size:
            return last_seconds * size / last_size
        place = next(index for index in range(1, len(self.points)) if size < self.points[index][0])
        (x0, t0), (x1, t1) = self.points[place - 1], self.points[place]
        return max(self.latency, t0 * math.exp(math.log(size / x0) * math.log(t1 / t0) / math.log(x1 / x0)))

    def faster(self, factor: float) -> Link:
        """The same link with every time after the latency divided by `factor`."""
        return Link(tuple((size, seconds / factor) for size, seconds in self.points), self.latency)


def _nvlink(*gigabytes: float) -> Link:
    """Two H200 on NV18, 16 / 128 / 1024 MiB received per rank, GB/s (calibration.json); the latency is assumed."""
    sizes = (16 * MIB, 128 * MIB, 1024 * MIB)
    return Link(tuple((size, size / (rate * 1e9)) for size, rate in zip(sizes, gigabytes, strict=True)), latency=12e-6)


NVLINK: Mapping[Collective, Link] = MappingProxyType(
    {"all_gather": _nvlink(173, 244, 279), "all_to_all": _nvlink(160, 260, 332), "send_receive": _nvlink(161, 287, 359)}
)
# One 400 Gb/s adapter for each GPU at 42 GB/s effective and 20 us a message: assumed, nothing measured.
INFINIBAND = Link(((42e9, 1.0),), latency=20e-6)


@dataclass(frozen=True)
class Cluster:
    """GPUs, joined by NVLink inside a node of `gpus_per_node` and by one InfiniBand adapter for each GPU between nodes."""

    device: Device = H200
    gpus_per_node: int = 8
    nvlink: Mapping[Collective, Link] = field(default_factory=lambda: NVLINK)
    infiniband: Link = INFINIBAND

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node must be a positive integer, got {self.gpus_per_node!r}.")

    def near(self, ranks: int, stride: int) -> int:
        """How many of `ranks` ranks that lie `stride` apart share a node with the first (1 to ranks)."""
        return max(1, min(ranks, self.gpus_per_node // stride)) if stride else ranks

    def seconds(self, collective: Collective, each: float, ranks: int, stride: int = 1) -> float:
        """Time of a collective in which every rank receives `each` bytes from every other rank of the group.

        Peers in the node come over NVLink, the others over InfiniBand, at the same time. An all-gather brings every remote share
        into the node once, over the adapters of all its members there, and fans it out over NVLink; all-to-all rows differ
        from rank to rank and cannot share. send_receive is one hop of a ring, as slow as its slowest hop.
        """
        if ranks <= 1 or each <= 0:
            return 0.0
        near = self.near(ranks, stride)
        far = ranks - near
        if collective == "send_receive":
            return self.infiniband.seconds(each) if far else self.nvlink[collective].seconds(each)
        if collective == "all_gather":
            inside = self.nvlink[collective].seconds(each * (ranks - 1 if near > 1 else 0))
            return max(inside, self.infiniband.seconds(each * far / near))
        return max(self.nvlink[collective].seconds(each * (near - 1)), self.infiniband.seconds(each * far))
