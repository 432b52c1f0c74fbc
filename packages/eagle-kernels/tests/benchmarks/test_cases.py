"""The cases themselves: their float64 truths, their inputs, the bytes that they count, and their names."""

from importlib import import_module

import pytest
import torch

norms = import_module("kernel_bench.norms")
gated = import_module("kernel_bench.gated")
rope = import_module("kernel_bench.rope")
linear_ce = import_module("kernel_bench.linear_ce")
peers = import_module("kernel_bench.peers")
problem = import_module("kernel_bench.problem")
run = import_module("kernel_bench.command")
SETTING = problem.Setting(torch.device("cpu"), True, 1.0, 48)
NAMES = (
    "rms_norm_forward rms_norm_backward add_rms_norm_forward add_rms_norm_backward rope swiglu_forward swiglu_backward "
    "linear_ce_32768 linear_ce_2048 linear_ce_32768_supervised20 linear_ce_32768_weighted offload_32768 step_32768 step_131072"
)


def test_the_cases_have_the_names_that_readers_of_result_files_look_for():
    assert tuple(NAMES.split()) == run.CASES


@pytest.mark.parametrize("case", run.OPERATORS)
def test_a_truth_lies_nearer_to_a_float32_run_than_bfloat16_can(case):
    """The eager operator in float32 on the very inputs: an independent path to the same numbers."""
    for found in run.OPERATORS[case](SETTING):
        wide = tuple(tensor.float() for tensor in found.inputs)
        if found.suffix == "_positions":
            continue  # the eager path rounds cos and sin to the dtype of q by its own definition
        if found.case == "rope":
            bind = found.bind.func
            options = dict(found.bind.keywords)
            options["angle"] = tuple(table.float() for table in options["angle"])
            if "grads" in options:
                options["grads"] = tuple(grad.float() for grad in options["grads"])
            call = bind(peers.eager()["eager"]["rope"], wide, **options)
        elif "backward" in case:
            call = _backward_in_float32(found, wide)
        else:
            call = found.bind(peers.eager()["eager"][found.operator], wide)
        errors = {name: _error(result, found.truth[name]) for name, result in zip(found.truth, call(), strict=True)}
        assert max(errors.values()) < 1e-5, errors


def _backward_in_float32(found, wide):
    operator = peers.eager()["eager"][found.operator]
    # Gradients come in the dtype of the output: cast them on the way in.
    return found.bind(lambda *own: _rounded(operator(*own)), wide)


def _rounded(result):
    """bfloat16 gradients enter a float32 graph through a cast that changes no value of the gradient."""
    results = result if isinstance(result, tuple) else (result,)
    return tuple(tensor.bfloat16() for tensor in results)


def _error(result, truth):
    return ((result.double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(
    ("case", "tensors"),
    [
        ("rms_norm_forward", 2),
        ("rms_norm_backward", 3),
        ("add_rms_norm_forward", 4),
        ("add_rms_norm_backward", 4),
        ("swiglu_forward", 3),
        ("swiglu_backward", 5),
        ("rope", 2),
    ],
)
def test_a_rate_counts_each_tensor_once(case, tensors):
    for found in run.OPERATORS[case](SETTING):
        size = sum(tensor.numel() for tensor in found.inputs) if case == "rope" else found.inputs[0].numel()
        assert found.value(1.0) == pytest.approx(tensors * size * 2 / 1e-3 / 1e12)


@pytest.mark.parametrize("case", run.OPERATORS)
def test_the_last_shape_of_a_case_is_the_one_at_32768(case):
    sizes = [next(iter(found.shape.values())) for found in run.OPERATORS[case](SETTING)]
    assert sizes[-1] == (8 if case == "linear_ce_2048" else 128 if case.startswith("linear_ce") else 32)


def test_the_logits_are_peaked_on_tokens_that_a_gradient_filter_keeps():
    data = linear_ce.peaked(SETTING, 64, 2048, 8192)
    chance = (data.hidden.double() @ data.weight.double().T).softmax(-1)
    kept = chance.where(chance > 2**-12, 0).sum(-1)
    assert kept.mean() > 0.99
    assert chance.gather(1, data.labels[:, None]).min() > 2**-12


def test_a_fifth_of_the_rows_is_supervised_and_listed():
    data = linear_ce.peaked(SETTING, 512, 64, 512)
    given = linear_ce.supervise(data, 0.2, weighted=True)
    kept = given.labels != peers.IGNORED
    assert 0.12 < kept.float().mean() < 0.28
    assert torch.equal(given.rows, kept.nonzero().squeeze(1))
    assert torch.equal(given.labels[kept], data.labels[kept])
    assert given.weight.min() > 0


def test_a_single_chunk_has_one_floor_and_several_have_two():
    data = linear_ce.peaked(SETTING, 96, 64, 512)
    one, two = linear_ce.floors(SETTING, data, 40), linear_ce.floors(SETTING, data, 96)
    assert (one["chunk_rows"], one["floor"]) == (40, one["floor_plain"])
    assert two["chunk_rows"] == 48
    assert two["floor"] != two["floor_plain"]
