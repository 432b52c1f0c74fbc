"""The recorded test run: outcomes of every test, and an exit code that tells."""

import json
from importlib import import_module

gpu_tests = import_module("kernel_bench.recorded_tests")

SUITE = """
import pytest

def test_good():
    pass

def test_bad():
    assert 1 == 2

@pytest.mark.skip(reason="no GPU")
def test_left_out():
    pass
"""


def _run(tmp_path, source):
    suite = tmp_path / "test_suite.py"
    suite.write_text(source)
    out = tmp_path / "t.json"
    code = gpu_tests.main(["--out", str(out), "--commit", "abc", str(suite), "-p", "no:cacheprovider"])
    return code, json.loads(out.read_text())


def test_every_outcome_is_recorded_with_its_reason(tmp_path):
    code, content = _run(tmp_path, SUITE)
    assert code == 1
    assert [content[word] for word in ("passed", "failed", "skipped")] == [1, 1, 1]
    found = {test["name"].split("::")[-1]: test for test in content["tests"]}
    assert found["test_good"]["outcome"] == "passed"
    assert "1 == 2" in found["test_bad"]["why"]
    assert "no GPU" in found["test_left_out"]["why"]
    assert content["commit"] == "abc"


def test_a_run_without_tests_is_not_a_success(tmp_path):
    code, content = _run(tmp_path, "x = 1\n")
    assert (code, content["tests"]) == (1, [])
