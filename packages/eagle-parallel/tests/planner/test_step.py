"""Whole steps: time and memory answer to the run's switches as they must, and measured steps are met."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eagle_parallel.planner import H200, KERNELS, MODELS, Choice, Cluster, Run, peak_memory, predict, step_time
from eagle_parallel.planner.calibration import comparisons, retention
from eagle_parallel.planner.hardware import INFINIBAND
from eagle_parallel.planner.step import model_flops
from hypothesis import given, settings
from hypothesis import strategies as st

QWEN = MODELS["qwen2.5-7b"]
RUN = Run(QWEN, (131072,), 8)
CP8 = Choice(1, 2, 4, "zigzag", "gather_kv")


@pytest.mark.parametrize("kind", ["step", "memory of a step"])
def test_measured_steps_that_no_constant_was_solved_from_are_met(kind: str) -> None:
    found = [comparison for comparison in comparisons() if comparison.what.startswith(f"{kind},") and not comparison.fitted]
    assert len(found) == (3 if kind == "step" else 2)
    for comparison in found:
        assert abs(comparison.error) <= (0.03 if kind == "step" else 0.08), comparison


def test_parts_of_a_step_sum_to_the_total_and_bound_is_the_largest() -> None:
    time = step_time(RUN, CP8)
    assert time.total == pytest.approx(sum(vars(time).values()))
    assert vars(time)[time.bound] == max(vars(time).values())


def test_checkpointing_costs_a_forward_and_keeping_attention_gives_it_back() -> None:
    plain, kept = step_time(RUN, CP8), step_time(replace(RUN, keep_attention=True), CP8)
    without = step_time(replace(RUN, checkpointing=False), CP8)
    assert plain.linear == pytest.approx(without.linear * 4 / 3)
    assert kept.attention == pytest.approx(without.attention)
    assert kept.attention < plain.attention
    held = [peak_memory(run, CP8).layers for run in (RUN, replace(RUN, keep_attention=True), replace(RUN, checkpointing=False))]
    assert held == sorted(held)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_each_zero_stage_needs_less_memory_than_the_one_before(stage: int) -> None:
    less, more = (peak_memory(replace(RUN, zero_stage=s), CP8).total for s in (stage + 1, stage))
    assert less < more


def test_offload_and_tiles_of_the_mlp_take_memory_away() -> None:
    plain = peak_memory(RUN, CP8)
    offloaded = peak_memory(replace(RUN, offload_inputs=True), CP8)
    tiled = peak_memory(replace(RUN, mlp_tile_tokens=2048), CP8)
    assert offloaded.layers < plain.layers / 10
    assert offloaded.host == pytest.approx(plain.layers)
    assert tiled.mlp < plain.mlp / 2


def test_two_ranks_halve_the_activations() -> None:
    run = replace(RUN, gpus=2)
    one, two = (
        peak_memory(run, choice) for choice in (Choice(2, 1, 1, "zigzag", "gather_kv"), Choice(1, 2, 1, "zigzag", "gather_kv"))
    )
    assert (two.layers + two.activations) / (one.layers + one.activations) == pytest.approx(0.5, abs=0.02)


@given(
    factor=st.floats(1.01, 20),
    ring=st.sampled_from([1, 2, 8]),
    ulysses=st.sampled_from([1, 4]),
    stage=st.integers(0, 3),
    what=st.sampled_from(["infiniband", "matmul_flops", "memory_bandwidth", "host_bandwidth"]),
)
@settings(deadline=None)
def test_faster_hardware_never_lengthens_a_step(factor: float, ring: int, ulysses: int, stage: int, what: str) -> None:
    run = Run(QWEN, (65536,), 64, zero_stage=stage, offload_inputs=True)
    choice = Choice(64 // ring // ulysses, ring, ulysses, "zigzag", "gather_kv")
    if what == "infiniband":
        faster = Cluster(infiniband=INFINIBAND.faster(factor))
    else:
        faster = Cluster(device=replace(H200, **{what: getattr(H200, what) * factor}))
    assert step_time(replace(run, cluster=faster), choice).total <= step_time(run, choice).total * (1 + 1e-12)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_and_gradients_wait_for_slow_links_only_when_there_are_links(stage: int) -> None:
    slow = Cluster(gpus_per_node=8, infiniband=INFINIBAND.faster(1e-3))
    alone, choice = Run(QWEN, (65536,), 1, zero_stage=stage), Choice(1, 1, 1, "zigzag", "gather_kv")
    assert step_time(replace(alone, cluster=slow), choice).zero == 0
    many, spread = replace(alone, gpus=64), replace(choice, dp=64)
    seconds = step_time(replace(many, cluster=slow), spread).zero
    # Of 2 bytes a weight, all but this GPU's node comes through its own adapter, one eighth each; stage 3 moves them three times.
    once = QWEN.parameters * 2 * 7 / 8 / 8 / 42e6
    compute = step_time(many, spread).total
    assert seconds > (2 if stage in (0, 1, 2) else 3) * once - compute
    assert seconds > 5 * step_time(many, spread).zero > 0


def test_a_prediction_of_retention_is_one_on_one_gpu_and_falls_with_the_context() -> None:
    def found(tokens: int, ring: int) -> float:
        return retention([tokens], ring, 1, "zigzag", "gather_kv", KERNELS["flash"], QWEN)

    assert found(8192, 1) == 1.0
    assert 0.5 < found(8192, 2) < found(32768, 2) < found(131072, 2) < 1.0
    assert retention([131072], 2, 1, "contiguous", "gather_kv", KERNELS["flash"], QWEN) == pytest.approx(2 / 3, abs=0.03)


def test_vision_tiles_are_shared_by_the_ranks() -> None:
    run = replace(RUN, model=MODELS["eagle2.5-8b"], tiles=64)
    assert step_time(run, CP8).vision == pytest.approx(8 * (2 * H200.tile_forward + H200.tile_backward))


def test_mfu_counts_six_operations_a_weight_and_token_and_no_recomputation() -> None:
    # Transformers with cuDNN attention took 5.04 s for 32768 tokens, 43.0 % MFU by the same count.
    run = Run(QWEN, (32768,), 1, kernel=KERNELS["cudnn"])
    assert model_flops(run) / 5.04 / H200.peak_flops == pytest.approx(0.430, abs=0.002)


def test_a_mesh_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="is not gpus=8; make them agree"):
        predict(RUN, Choice(2, 2, 4, "zigzag", "gather_kv"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": 0}, "gpus must be a positive integer"),
        ({"lengths": (3, 0)}, "one positive token count for each document"),
        ({"zero_stage": 4}, "zero_stage must be 0, 1, 2 or 3"),
        ({"checkpointing": False, "offload_inputs": True}, "offload_inputs needs checkpointing"),
        ({"batch_tokens": 5}, "raise it"),
        ({"tiles": -1}, "tiles must not be negative"),
        ({"mlp_tile_tokens": 0}, "mlp_tile_tokens must be a positive integer or None"),
    ],
)
def test_a_run_that_cannot_be_names_the_argument(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RUN, **change)  # pyright: ignore[reportArgumentType]
