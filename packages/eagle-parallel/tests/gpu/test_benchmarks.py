"""The benchmark harness itself, rehearsed on the CPU: what it measures, refuses and writes, and how the tables read it."""

import json
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"

bare = import_module("parallel_bench.bare")
command = import_module("parallel_bench.command")
emulated = import_module("parallel_bench.emulated")
one_gpu = import_module("parallel_bench.one_gpu")
packs = import_module("parallel_bench.packs")
tables = import_module("parallel_bench.tables")
targets = import_module("parallel_bench.targets")
turns = import_module("parallel_bench.turns")


def _run(tmp_path, *more):
    out = tmp_path / "result.json"
    code = command.main(["--quick", "--device", "cpu", "--commit", "abc", "--out", str(out), *more])
    return code, json.loads(out.read_text())


def test_the_fine_tuning_mix_fills_the_pack_and_is_the_same_everywhere():
    for seed in packs.SEEDS:
        lengths = packs.fine_tuning_lengths(seed)
        assert sum(lengths) == 32768
        assert min(lengths[:-1]) >= 16
        assert max(lengths) <= 8192
    assert packs.fine_tuning_lengths(0) == packs.fine_tuning_lengths(0) != packs.fine_tuning_lengths(1)


def test_the_cases_are_those_of_the_issue():
    sizes = {case: [pack.tokens for pack in packs.packs(case, False)] for case in command.RETENTION}
    assert sizes["retention_128k"] == [131072]
    assert sizes["retention_sft32k"] == [32768] * 5
    assert packs.packs("retention_video64k", False)[0].lengths == (30011, 17389, 9127, 5003, 2411, 1021, 389, 185)


def test_a_rehearsal_names_one_gpu_rows_apart_and_says_what_was_not_run(tmp_path):
    code, content = _run(tmp_path, "--cases", "retention_8k")
    assert code == 0
    assert {row["case"] for row in content["rows"]} == {"retention_8k_compute"}
    row = content["rows"][0]
    assert row["ranks"] == "one GPU, compute only"
    assert row["value"] == pytest.approx(row["one_gpu_ms"] / (2 * max(row["rank_ms"])))
    assert row["prediction_without_overlap"] < row["value"]
    assert {line["impl"] for line in content["absent"] if line["case"] == "retention_8k"} == {"eagle", *command.RIVALS}


def test_memory_and_vision_run_through(tmp_path):
    pytest.importorskip("transformers")
    code, content = _run(tmp_path, "--cases", "memory_p2,vision_p2", "--kernels", "flash")
    assert code == 0
    assert {row["case"] for row in content["rows"]} == {"memory_p2_attention", "memory_p2_compute", "vision_p2_compute"}


def test_an_answer_that_is_too_far_off_is_a_failure_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(one_gpu, "limits", lambda *_: dict.fromkeys(("out", "dq", "dk", "dv"), 0.5))
    code, content = _run(tmp_path, "--cases", "retention_8k", "--kernels", "flash")
    assert code == 1
    assert "allowed 0.50x" in content["failures"][0]["error"]
    assert not content["rows"][0]["within_limits"]


def test_parts_past_the_time_limit_are_named(tmp_path):
    _, content = _run(tmp_path, "--cases", "retention_8k", "--seconds", "-1")
    assert not content["rows"]
    assert [line["case"] for line in content["absent"] if "not started" in line["reason"]] == ["retention_8k_compute"] * 2


def test_appending_replaces_only_the_kernel_that_is_measured_again(tmp_path):
    _, first = _run(tmp_path, "--cases", "retention_8k")
    _, second = _run(tmp_path, "--cases", "retention_8k", "--kernels", "cudnn", "--append")
    assert sorted(row["impl"] for row in second["rows"]) == ["eagle", "eagle_cudnn"]
    assert second["rows"][0] == next(row for row in first["rows"] if row["impl"] == "eagle")


def test_counted_bytes_are_those_of_the_layout():
    """Two ranks gather half of K and V forward and backward, and return the other's gradients: three times the same bytes."""
    pack = packs.packs("retention_8k", True)[0]
    with emulated.emulated_kernels():
        (row,) = one_gpu.retention_rows(pack, "flash", torch.device("cpu"), 0.01, {})
    # The rank with the last chunk needs all of the other's rows; the other needs its first chunk and sends back less.
    assert row["wire_bytes"] <= 3 * (pack.tokens // 2) * 2 * pack.heads.kv_heads * pack.heads.head_dim * 2
    assert row["wire_bytes"] > 0


def test_the_bare_calls_agree_with_each_other():
    pack = packs.packs("retention_sft32k", True)[0]
    tensors = one_gpu.inputs(pack, torch.device("cpu"))
    with emulated.emulated_kernels():
        one, other = (bare.whole(bare.bare_call(kernel, tensors, pack.lengths)()) for kernel in bare.KERNELS)
    torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_calls_take_turns_and_the_rounds_that_warm_up_are_not_counted():
    order = []
    times = turns.in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, torch.device("cpu"), seconds=0.0, least=3
    )
    assert order == ["a", "b"] * 5
    assert times["a"].runs == 3


def test_two_processes_measure_a_real_retention(tmp_path):
    out = tmp_path / "pair.json"
    command_line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    options = [
        "--quick",
        "--device",
        "cpu",
        "--commit",
        "abc",
        "--cases",
        "retention_8k",
        "--kernels",
        "flash",
        "--out",
        str(out),
    ]
    done = subprocess.run([*command_line, str(RUN), *options], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    assert (row["case"], row["impl"]) == ("retention_8k", "eagle")
    assert row["value"] == pytest.approx(row["one_gpu_ms"] / (2 * max(row["rank_ms"])))
    assert {line["impl"] for line in content["absent"]} >= {"ring-flash-attn-llama3", "ring-flash-attn-zigzag"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _row(case, impl, value, **more):
    return {"case": case, "impl": impl, "value": value, "unit": "R", "spread": 0.0, "shape": {"tokens": 8}, **more}


def test_the_worst_pack_counts_and_one_gpu_rows_reach_nothing():
    rows = [
        _row("retention_sft32k", "eagle", 0.95),
        _row("retention_sft32k", "eagle", 0.89),
        _row("retention_8k_compute", "eagle", 1.0),
    ]
    found = {(verdict.case, verdict.text): verdict for verdict in targets.judge(rows)}
    assert found["retention_sft32k", "at least 0.90"].reached is False
    assert found["retention_8k", "at least 0.80"].reached is None


def test_a_rival_with_little_headroom_need_only_be_met():
    rows = [_row("retention_64k", "eagle", 1.0), _row("retention_64k", "yunchang", 0.99)]
    (verdict,) = [verdict for verdict in targets.judge(rows) if "yunchang" in verdict.text]
    assert verdict.reached


def test_tables_keep_real_and_predicted_figures_apart(tmp_path):
    _, content = _run(tmp_path, "--cases", "retention_8k", "--kernels", "flash")
    lines = tables.page(content["rows"], targets.judge(content["rows"]))
    text = "\n".join(lines)
    assert tables.NO_PAIR in text
    head = next(line for line in lines if "R of compute" in line and line.startswith("|"))
    assert head.count("*predicted*") == 2
    real = "\n".join(tables.page([_row("retention_8k", "eagle", 0.9)], []))
    assert "| retention_8k | 8 tokens | eagle | 0.900 |" in real
    assert "predicted" not in real
