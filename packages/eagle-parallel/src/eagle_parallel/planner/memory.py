"""Bytes that a rank needs at the peak of a training step, part by part.

The peak is taken at the last layer's backward under checkpointing: all layer inputs are held and one layer is open. Fragmentation
and what libraries hold are one reserved sum. Not a trace of an allocator.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from eagle_parallel.planner.attention import head_share, volume
from eagle_parallel.planner.load import RankLoad, rank_load
from eagle_parallel.planner.run import Choice, Run

_BYTES = 2
RESERVED = 6 * 2**30  # CUDA context, NCCL buffers, allocator fragments: assumed
_LOGITS_CHUNK = 0.3 * 2**30  # what head and loss in one pass hold beyond gradients (1.52 GiB at 32768 rows less dW and dX)
_MLP_WIDTHS = 5  # tokens x intermediate tensors alive in the MLP's backward: gate, up, their product and two gradients


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of one rank at the peak; `host` is beside the total, in the host's memory.

    weights, gradients, optimiser: after ZeRO's share. layers: what layers keep for backward. attention: the open layer's q, k, v,
    out, their gradients and exchange buffers. mlp: the open layer's MLP, which is not open when attention is. head: logits of a
    chunk. reserved: outside the model's control.
    """

    weights: float
    gradients: float
    optimiser: float
    layers: float
    attention: float
    mlp: float
    head: float
    reserved: float
    host: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.layers + self.activations + self.reserved

    @property
    def activations(self) -> float:
        """The largest of what is open at one time."""
        return max(self.attention, self.mlp, self.head)

    @property
    def bound(self) -> str:
        """The part that takes the most."""
        names = [field.name for field in fields(self) if field.name != "host"]
        return max(names, key=lambda name: getattr(self, name))


def peak_memory(run: Run, choice: Choice, load: RankLoad | None = None) -> PeakMemory:
    """Predict a rank's peak.

    Args:
        run: model, documents and engine.
        choice: mesh, layout and algorithm.
        load: of the busiest ring rank, where the caller has it already.
    """
    model = run.model
    local = -(-run.context // choice.cp)
    load = load or rank_load(run.lengths, choice.cp_ring, choice.layout)

    parameters = model.parameters
    weights = _BYTES * parameters / (run.gpus if run.zero_stage >= 3 else 1)
    if run.zero_stage >= 3 and run.gpus > 1:
        weights += _BYTES * max(2 * model.layer_parameters, model.head_parameters)  # this layer's and the next one's, gathered
    gradients = _BYTES * parameters / (run.gpus if run.zero_stage >= 2 else 1)
    optimiser = run.optimiser * 12 * parameters / (run.gpus if run.zero_stage >= 1 else 1)

    width = (2 * model.query_heads + 2 * model.kv_heads) * model.head_dim  # q, k, v, out of a token
    one_input = float(_BYTES * local * model.hidden)
    host = 0.0
    if not run.checkpointing:
        layers = model.layers * _BYTES * local * (4 * model.hidden + width + 3 * model.intermediate)
    elif run.offload_inputs:
        layers, host = 2 * one_input, model.layers * one_input  # one on its way in or out, one in use
    else:
        layers = model.layers * one_input
    if run.keep_attention and run.checkpointing:
        layers += model.layers * local * model.query_heads * (_BYTES * model.head_dim + 4)
    tile = min(local, run.mlp_tile_tokens or local)
    mlp = _BYTES * (_MLP_WIDTHS * tile * model.intermediate + 3 * local * model.hidden)
    attention = 2 * _BYTES * local * width + 3 * one_input + _exchange_bytes(run, choice, load, local)
    if not run.gradients_resident:  # they appear as inputs go, so that the peak holds the larger of the two
        layers, gradients = max(layers, gradients), _BYTES * model.head_parameters
    return PeakMemory(weights, gradients, optimiser, layers, attention, mlp, one_input + _LOGITS_CHUNK, RESERVED, host)


def _exchange_bytes(run: Run, choice: Choice, load: RankLoad, local: int) -> float:
    """Buffers of the exchanges: heads of the ring share, and gathered (or rotating) K and V with their gradients."""
    model = run.model
    moved = volume(model, local, load.moved_tokens, choice.cp_ulysses)
    buffers = moved.ulysses_forward + moved.ulysses_backward
    if choice.cp_ring == 1 or not load.moved_tokens:
        return buffers
    share = head_share(model.query_heads, model.kv_heads, choice.cp_ulysses)
    tokens = load.moved_tokens + run.context / choice.cp_ring
    gathered = tokens * share.kv * model.head_dim * _BYTES * 2
    if choice.algorithm == "gather_kv":
        return (
            buffers + 3 * gathered
        )  # wire buffer, rows in segment order, dK and dV; less where the heads are gathered in groups
    hop = run.context / choice.cp_ring * model.head_dim * _BYTES * 2 * share.kv
    return (
        buffers + 4 * hop + 2 * run.context / choice.cp_ring * share.query * model.head_dim * 4
    )  # two of K, V, dK, dV; fp32 out
