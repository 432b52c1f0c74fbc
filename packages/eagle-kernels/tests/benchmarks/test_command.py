"""The command, end to end on the CPU at tiny shapes: rows, exit codes, and arguments that make no sense."""

import json
from importlib import import_module

import eagle_kernels
import pytest

run = import_module("kernel_bench.command")


def _run(tmp_path, *words):
    path = tmp_path / "r.json"
    code = run.main(["--out", str(path), "--commit", "abc", "--quick", "--device", "cpu", "--peers", "eager", *words])
    return code, json.loads(path.read_text())


@pytest.mark.filterwarnings("ignore")
def test_a_quick_run_writes_rows_of_ours_and_of_the_peer_for_every_operator(tmp_path):
    cases = [case for case in run.OPERATORS if case != "rope"]
    code, content = _run(tmp_path, "--cases", ",".join(cases))
    assert code == 0, content["failures"]
    for case in cases:
        rows = [row for row in content["rows"] if row["case"] == case]
        assert {row["impl"] for row in rows} >= {"eagle", "eager"}
        assert all(row["value"] > 0 and row["runs"] > 1 and row["floor"] > 0 for row in rows)


def test_a_wrong_operator_of_ours_makes_the_exit_code_1_and_costs_no_other_case(tmp_path, monkeypatch):
    monkeypatch.setattr(eagle_kernels, "rms_norm", lambda x, weight, eps: x)
    code, content = _run(tmp_path, "--cases", "rms_norm_forward,swiglu_forward")
    assert code == 1
    assert {row["impl"] for row in content["rows"] if row["case"] == "rms_norm_forward"} == {"eager"}
    assert {row["impl"] for row in content["rows"] if row["case"] == "swiglu_forward"} == {"eagle", "eager"}


def test_a_case_that_breaks_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    def broken(setting):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(run.OPERATORS, "rms_norm_forward", broken)
    code, content = _run(tmp_path, "--cases", "rms_norm_forward,swiglu_forward")
    assert code == 1
    assert "out of memory" in content["failures"][0]["error"]
    assert {row["case"] for row in content["rows"]} == {"swiglu_forward"}


def test_a_profile_lies_beside_the_result_file(tmp_path):
    path = tmp_path / "r.json"
    code = run.main(["--out", str(path), "--commit", "abc", "--quick", "--device", "cpu", "--profile", "swiglu_forward"])
    assert code == 0
    assert "Self CPU" in (tmp_path / "r-profile-swiglu_forward.txt").read_text()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--cases", "ropes"], "ropes"),
        (["--peers", "liga"], "liga"),
        (["--step", "keep_atention=true"], "keep_atention"),
    ],
)
def test_a_wrong_word_is_named(tmp_path, capsys, words, named):
    with pytest.raises(SystemExit) as stopped:
        _run(tmp_path, *words)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_the_real_shapes_are_refused_on_a_cpu(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--out", str(tmp_path / "r.json"), "--commit", "abc", "--device", "cpu"])
    assert "--quick" in capsys.readouterr().err
