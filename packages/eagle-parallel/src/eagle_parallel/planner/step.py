"""Seconds of one training step of a whole model, part by part: the sum of what the busiest rank does and waits for.

The parts: products with weights, attention, what memory bandwidth bounds, head and loss, vision tower, optimiser, and wire time
that nothing hides. Wires of context parallelism and of ZeRO are priced apart, as if they never met on a link, and every
data-parallel group is taken to have the same pack. Not a simulator: no stragglers, no data loading, no pipeline or tensor axis.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from eagle_parallel.planner.attention import attention_time
from eagle_parallel.planner.load import RankLoad, rank_load
from eagle_parallel.planner.run import Choice, Run

# Bytes that AdamW reads and writes for a weight: fp32 master, both moments (4 + 4 each way), gradient read, bf16 weight written.
_OPTIMISER_BYTES = 28
_BYTES = 2


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on; `total` is their sum.

    linear: products with layer weights, with recomputation. attention: the kernel, with recomputation and the busiest rank's
    imbalance. elementwise: norms, activations, rotations, residuals. head: last product and loss. vision: tower. optimiser:
    AdamW. copies: rows moved in memory for exchanges. ulysses, ring: exposed wire of context parallelism. zero: exposed wire of
    weights and gradients. offload: host copies that nothing hides.
    """

    linear: float
    attention: float
    elementwise: float
    head: float
    vision: float
    optimiser: float
    copies: float
    ulysses: float
    ring: float
    zero: float
    offload: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def bound(self) -> str:
        """The part that takes the longest."""
        return max((field.name for field in fields(self)), key=lambda name: getattr(self, name))


def step_time(run: Run, choice: Choice, load: RankLoad | None = None) -> StepTime:
    """Predict one optimiser step of one pack for each data-parallel group.

    Args:
        run: model, documents, cluster and engine.
        choice: mesh, layout and algorithm; dp * cp is the number of GPUs.
        load: of the busiest ring rank, where the caller has it already.
    """
    model, device = run.model, run.cluster.device
    local = -(-run.context // choice.cp)
    forwards = 2 if run.checkpointing else 1

    one_product = max(2 * model.layer_parameters * local / device.matmul_flops, _weights_read(run))
    linear = model.layers * one_product * (forwards + 2)
    per_token = _elementwise_bytes(run)
    elementwise = model.layers * local * per_token * (forwards + 2) / (device.memory_bandwidth * device.elementwise_share)

    load = load or rank_load(run.lengths, choice.cp_ring, choice.layout)
    one = attention_time(
        model,
        load,
        run.context,
        choice.cp_ring,
        choice.cp_ulysses,
        run.cluster,
        kernel=run.kernel,
        algorithm=choice.algorithm,
        documents=len(run.lengths),
    )
    attention_forwards = 1 if run.keep_attention else forwards
    again = (attention_forwards - 1) / 2  # what recomputation adds to a forward and backward whose halves are alike on the wire
    kernel = model.layers * (one.kernel_forward * attention_forwards + one.kernel_backward)
    ring = model.layers * (one.exposed_ring + (attention_forwards - 1) * one.exposed_ring_forward)
    ulysses = model.layers * one.exposed_ulysses * (1 + again)
    copies = model.layers * one.copies * (1 + again)

    head = 6 * model.head_parameters * local / device.head_flops
    tiles = -(-run.tiles // choice.cp)
    vision = tiles * (forwards * device.tile_forward + device.tile_backward)
    optimiser = run.optimiser * _OPTIMISER_BYTES * model.parameters / _shards(run, 1) / device.memory_bandwidth

    compute = linear + kernel + elementwise + head + vision
    offload = 0.0
    if run.offload_inputs:
        moved = 2 * model.layers * local * model.hidden * _BYTES / device.host_bandwidth  # out in forward, back in backward
        offload = max(0.0, moved - compute)
    return StepTime(
        linear, kernel, elementwise, head, vision, optimiser, copies, ulysses, ring, _zero_seconds(run, compute), offload
    )


def model_flops(run: Run) -> float:
    """Operations that MFU counts for a pack: 6 for each weight but the embedding and token, attention forward and backward.

    The vision tower and recomputation are not counted.
    """
    model = run.model
    weights = model.layers * model.layer_parameters + model.head_parameters
    return 6 * weights * run.context + 14 * model.layers * model.query_heads * model.head_dim * run.causal_pairs


def _weights_read(run: Run) -> float:
    """A product cannot take less time than reading its weights."""
    return run.model.layer_parameters * _BYTES / run.cluster.device.memory_bandwidth


def _elementwise_bytes(run: Run) -> int:
    """Bytes that one layer's fused element-wise operations move for a token in forward; backward moves twice as many.

    Two norms (read, write), two residual sums (two reads, one write), SwiGLU (two reads, one write), RoPE on q and k.
    """
    model = run.model
    rotated = 2 * (model.query_heads + model.kv_heads) * model.head_dim
    return _BYTES * (4 * model.hidden + 6 * model.hidden + 3 * model.intermediate + rotated)


def _shards(run: Run, stage: int) -> int:
    """Parts into which what ZeRO `stage` shares out is cut."""
    return run.gpus if run.zero_stage >= stage else 1


def _zero_seconds(run: Run, compute: float) -> float:
    """Exposed wire of weights and gradients over all GPUs; forward is a third of the step or less, backward the rest.

    Stage 3 gathers weights in both passes and reduces gradients in backward, all hidden but for one layer at each end. Stages 1
    and 2 hide the reduction behind backward and wait for the updated weights; stage 0 reduces and redistributes gradients.
    """
    if run.gpus == 1:
        return 0.0
    everything = run.cluster.seconds("all_gather", run.model.parameters * _BYTES / run.gpus, run.gpus)
    one_layer = run.cluster.seconds("all_gather", run.model.layer_parameters * _BYTES / run.gpus, run.gpus)
    forward, backward = compute / 3, compute * 2 / 3
    if run.zero_stage == 3:
        return max(0.0, everything - forward) + max(0.0, 2 * everything - backward) + 2 * one_layer
    if run.zero_stage:
        return max(0.0, everything - backward) + one_layer + everything
    return max(0.0, 2 * everything - backward) + one_layer
