"""Whole steps: the settings on the command line, the worker's answers on a tiny model, and when ours counts as wrong."""

import json
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

options = import_module("kernel_bench.step_options")
record = import_module("kernel_bench.record")
step = import_module("kernel_bench.step")
worker = import_module("kernel_bench.step_worker")


def _job(impls, chosen=None, case="offload_32768", runs=1):
    chosen = chosen or options.StepOptions()
    return options.Job(case=case, impls=impls, tokens=32, runs=runs, device="cpu", quick=True, options=chosen)


def test_words_of_the_command_line_become_settings():
    start = options.StepOptions(keep_attention=True)
    found = options.parse(["keep_attention=false", "mlp_tile_tokens=8192", "keep_budget_gib=0.5", "checkpointer=torch"], start)
    assert found == options.StepOptions(checkpointer="torch", mlp_tile_tokens=8192, keep_budget_gib=0.5)
    with pytest.raises(ValueError, match="'keep=1'"):
        options.parse(["keep=1"], start)


@given(st.booleans(), st.one_of(st.none(), st.floats(0, 100)), st.one_of(st.none(), st.integers(1, 99999)))
def test_a_job_survives_the_way_to_its_process(offload, budget, tile):
    job = _job(("eagle",), options.StepOptions(offload_inputs=offload, keep_budget_gib=budget, mlp_tile_tokens=tile))
    assert options.Job.from_json(job.to_json()) == job


def test_a_policy_names_only_what_was_set():
    assert options.StepOptions().policy() == {}
    chosen = options.StepOptions(keep_attention=True, offload_kept=True, keep_budget_gib=0).policy()
    assert chosen == {"keep_attention": True, "offload_kept": True, "keep_budget": 0}


def test_offload_gives_the_loss_and_gradients_of_plain_checkpointing_and_holds_the_layer_inputs_on_the_host(capsys):
    pytest.importorskip("transformers")
    worker.run(_job(step.OFFLOAD, options.StepOptions(offload_inputs=True)))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"impl"')]
    assert [line["impl"] for line in lines] == list(step.OFFLOAD)
    plain, _, eagle = lines
    assert step.off_by(eagle, plain) == 0
    assert eagle["host_ratio"] == 1
    assert "host_ratio" not in plain


def test_an_implementation_that_raises_is_a_failure_and_not_the_end(capsys):
    pytest.importorskip("transformers")
    worker.run(_job(("eagle", "plain"), options.StepOptions(keep_budget_gib=-1)))
    eagle, plain = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"impl"')]
    assert "keep_budget" in eagle["failure"]
    assert plain["value"] > 0


def test_a_loss_or_gradient_of_ours_that_differs_is_a_failure(tmp_path):
    written = record.Record(tmp_path / "r.json", {})
    job = _job(("eagle",), case="step_32768")
    reference = {"loss": 12.0, "grad_norm": 3.0}
    line = {"impl": "eagle", "value": 1.0, "runs": 1, "spread": 0.0, "loss": 12.01, "grad_norm": 3.01}
    step.write("step_32768", job, [line, {**line, "grad_norm": 3.2}, {"impl": "liger", "failure": "oom"}], reference, written)
    assert [row["grad_norm"] for row in written.rows] == [3.01]
    assert [failure["impl"] for failure in written.failures] == ["eagle", "liger"]
