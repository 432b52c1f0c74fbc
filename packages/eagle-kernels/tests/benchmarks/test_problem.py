"""A problem is solved in the right order: wrong answers of ours are never timed, those of peers are set apart."""

import json
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

problem = import_module("kernel_bench.problem")
record = import_module("kernel_bench.record")
peers = import_module("kernel_bench.peers")
CPU = torch.device("cpu")
SETTING = problem.Setting(CPU, True, 1.0, 8)


def _problem(inputs, **options):
    gate, up = inputs
    truth = {"product": torch.nn.functional.silu(gate.double()) * up.double()}
    settings = {"case": "swiglu_forward", "shape": {"rows": len(gate)}, "operator": "swiglu", "bind": problem.bind_forward}
    return problem.Problem(**settings, inputs=inputs, truth=truth, unit="TB/s", value=lambda ms: 1 / ms, **options)


def _inputs():
    random = SETTING.random()
    return random(16, 32), random(16, 32)


def _wrong(gate, up):
    return torch.nn.functional.silu(gate) * up * 1.1


def _solve(tmp_path, implementations, given=None):
    written = record.Record(tmp_path / "r.json", {})
    problem.solve(given or _problem(_inputs()), implementations, written, SETTING)
    return written


def test_a_wrong_answer_of_ours_is_a_failure_without_a_row_and_the_peers_keep_theirs(tmp_path):
    written = _solve(tmp_path, {"eagle": {"swiglu": _wrong}, "eager": {"swiglu": peers.eager_swiglu}})
    assert [row["impl"] for row in written.rows] == ["eager"]
    assert "wrong answer" in written.ours_failed()[0]["error"]
    assert json.loads((tmp_path / "r.json").read_text())["failures"] == written.failures


def test_a_wrong_answer_of_a_peer_goes_under_the_inexact_case(tmp_path):
    written = _solve(tmp_path, {"eagle": {"swiglu": peers.eager_swiglu}, "liger": {"swiglu": _wrong}})
    assert [(row["case"], row["impl"]) for row in written.rows] == [
        ("swiglu_forward", "eagle"),
        ("swiglu_forward_inexact", "liger"),
    ]
    assert written.rows[0]["error"] <= 1.05 * written.rows[0]["eager_error"] + 1e-6
    assert not written.ours_failed()


def test_a_peer_that_writes_over_its_inputs_spoils_nobody_elses(tmp_path):
    def greedy(gate, up):
        product = peers.eager_swiglu(gate, up)
        gate.data.zero_()
        up.data.zero_()
        return product

    inputs = _inputs()
    before = [tensor.clone() for tensor in inputs]
    written = _solve(tmp_path, {"liger": {"swiglu": greedy}, "eagle": {"swiglu": peers.eager_swiglu}}, _problem(inputs))
    assert [row["case"] for row in written.rows] == ["swiglu_forward"] * 2
    assert all(torch.equal(tensor, old) for tensor, old in zip(inputs, before, strict=True))


def test_what_is_missing_is_said(tmp_path):
    def refuses(gate, up):
        raise peers.NotOffered("no such option")

    def breaks(gate, up):
        raise RuntimeError("no kernel image")

    written = _solve(tmp_path, {"eagle": {}, "quack": {}, "cce": {"swiglu": refuses}, "liger": {"swiglu": breaks}})
    assert not written.rows
    assert {(line["impl"], line["reason"]) for line in written.absent} == {
        ("quack", "has no swiglu"),
        ("cce", "no such option"),
    }
    assert {line["impl"]: line["error"] for line in written.failures} == {
        "eagle": "eagle_kernels has no swiglu",
        "liger": "RuntimeError: no kernel image",
    }


def test_backward_gives_the_gradients_of_every_input_again_and_again():
    gate, up = _inputs()
    grad = torch.randn_like(gate)
    call = problem.bind_backward(peers.eager_swiglu, (gate.clone(), up.clone()), (grad,))
    first, second = call(), call()
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    expected = torch.autograd.grad(peers.eager_swiglu(*leaves), leaves, grad)
    for once, twice, right in zip(first, second, expected, strict=True):
        assert torch.equal(once, right)
        assert torch.equal(twice, right)
        assert once is not twice


@given(st.floats(0, 1), st.floats(1e-5, 1), st.booleans())
def test_an_answer_is_right_up_to_1_05_times_eagers_error(error, eager_error, scalar):
    found = problem.check({"dx": error}, {"dx": eager_error}, frozenset({"dx"} if scalar else ()))
    assert found.right == (error <= 1.05 * eager_error + (1e-3 if scalar else 1e-6))


def test_the_output_that_stands_worst_decides():
    found = problem.check({"dx": 0.001, "dweight": 0.02}, {"dx": 0.002, "dweight": 0.01})
    assert (found.output, found.right) == ("dweight", False)


def test_an_unknown_peer_is_named_and_an_absent_one_has_its_reason(monkeypatch):
    with pytest.raises(ValueError, match="'liga'"):
        peers.load(["liga"], 8)

    def missing():
        raise ImportError("no liger_kernel")

    monkeypatch.setitem(peers.LOADERS, "liger", missing)
    found, absent = peers.load(["liger", "eager"], 8)
    assert list(found) == ["eagle", "eager"]
    assert absent == {"liger": "ImportError: no liger_kernel"}
