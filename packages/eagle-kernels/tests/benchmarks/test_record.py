"""The result file: complete after every row, honest about what is kept from an earlier run."""

import json
from importlib import import_module

import pytest
import torch

record = import_module("kernel_bench.record")
HEAD = {"hardware": "x", "versions": {"torch": "1"}, "driver": None, "commit": "abc", "date": "2026-01-01", "command": "one"}


def _row(case, impl="eagle"):
    return {"case": case, "impl": impl, "shape": {"rows": 1}, "value": 1.0, "unit": "TB/s", "runs": 1, "spread": 0.0}


def test_the_file_is_whole_after_every_line(tmp_path):
    path = tmp_path / "results" / "r.json"
    written = record.Record(path, HEAD)
    for add in (
        lambda: written.add(_row("rope")),
        lambda: written.add_absent("quack", "not installed"),
        lambda: written.add_failure("rope", "eagle", {}, "broken"),
    ):
        add()
        content = json.loads(path.read_text())
        assert content["commit"] == "abc"
        assert (content["rows"], content["absent"], content["failures"]) == (written.rows, written.absent, written.failures)
    assert [file.name for file in path.parent.iterdir()] == ["r.json"]


def test_append_keeps_other_cases_and_replaces_those_measured_again(tmp_path):
    path = tmp_path / "r.json"
    first = record.Record(path, HEAD)
    for row in (_row("rope"), _row("linear_ce_2048"), _row("linear_ce_2048_inexact", "liger")):
        first.add(row)
    second = record.open_record(path, {**HEAD, "command": "two"}, {"linear_ce_2048"}, append=True)
    assert [row["case"] for row in second.rows] == ["rope"]
    assert second.head["command"] == "one && two"
    assert record.open_record(path, HEAD, {"rope"}, append=False).rows == []


@pytest.mark.parametrize("change", [{"commit": "def"}, {"hardware": "y"}, {"versions": {"torch": "2"}}])
def test_rows_of_another_commit_machine_or_version_are_not_mixed_in(tmp_path, change):
    path = tmp_path / "r.json"
    record.Record(path, HEAD).add(_row("rope"))
    with pytest.raises(ValueError, match=next(iter(change))):
        record.open_record(path, {**HEAD, **change}, set(), append=True)


def test_the_head_says_what_a_reader_needs_to_repeat_the_run():
    head = record.setting_of(torch.device("cpu"), "abc", "python run.py")
    assert set(head) == {"hardware", "versions", "driver", "commit", "date", "command"}
    assert head["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "CPU" in head["hardware"]
