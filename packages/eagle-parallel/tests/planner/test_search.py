"""The ranking of meshes, shapes that are read from configs, mixes of documents, and the command."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from eagle_parallel.planner import MODELS, Cluster, Run, explain, load_model, search
from eagle_parallel.planner.cli import main
from eagle_parallel.planner.documents import mix_lengths, read_lengths
from eagle_parallel.planner.search import choices

QWEN = MODELS["qwen2.5-7b"]


def test_every_mesh_of_the_gpus_is_tried_and_the_fastest_comes_first() -> None:
    run = Run(QWEN, (65536,), 8)
    meshes = {(choice.cp_ring, choice.cp_ulysses) for choice in choices(run)}
    assert meshes == {(ring, ulysses) for ring in (1, 2, 4, 8) for ulysses in (1, 2, 4, 8) if 8 % (ring * ulysses) == 0}
    found = search(run)
    assert all(prediction.fits for prediction in found)
    rates = [prediction.tokens_per_second for prediction in found]
    assert rates == sorted(rates, reverse=True)


def test_what_does_not_fit_is_left_out_and_nothing_fitting_is_still_told() -> None:
    run = Run(QWEN, (1 << 20,), 8)
    assert all(prediction.choice.cp > 1 for prediction in search(run))
    tiny = replace(run, cluster=Cluster(replace(run.cluster.device, memory=2**30)))
    found = search(tiny)
    assert not any(prediction.fits for prediction in found)
    assert found[0].memory.total == min(prediction.memory.total for prediction in found)
    assert "does not fit" in explain(found[0])


def test_a_bound_on_the_batch_bounds_dp() -> None:
    run = Run(QWEN, (32768,), 8, batch_tokens=65536)
    assert {prediction.choice.dp for prediction in search(run)} == {1, 2}
    with pytest.raises(ValueError, match="raise it or use fewer GPUs"):
        search(Run(QWEN, (64,), 1024, batch_tokens=64))


def test_ulysses_stays_inside_the_node_and_the_gather_outside() -> None:
    best = search(Run(QWEN, (65536,), 16, batch_tokens=65536))[0].choice
    assert best.cp_ulysses > 1
    assert best.cp_ulysses <= 8
    assert best.cp_ring == 16 // best.cp_ulysses


@pytest.mark.parametrize(("gpus", "mix"), [(1, "one"), (4096, "one"), (4096, "video"), (2520, "sft")])
def test_thousands_of_gpus_are_searched_in_seconds(gpus: int, mix: str) -> None:
    run = Run(QWEN, mix_lengths(mix, 131072), gpus)
    start = time.perf_counter()
    search(run)
    assert time.perf_counter() - start < 5


def test_mixes_fill_the_context_exactly() -> None:
    for mix in ("one", "sft", "video"):
        for context in (1, 100, 32768, 65536, 1 << 20):
            lengths = mix_lengths(mix, context, seed=2)
            assert sum(lengths) == context
            assert min(lengths) > 0
    assert mix_lengths("video", 65536) == (30011, 17389, 9127, 5003, 2411, 1021, 389, 185)
    sft = mix_lengths("sft", 1 << 20)
    assert 500 < sorted(sft)[len(sft) // 2] < 720
    assert min(sft[:-1]) >= 16
    assert max(sft) <= 8192
    with pytest.raises(ValueError, match="use one of one, sft, video"):
        mix_lengths("long", 5)


def test_lengths_are_read_from_text_and_json(tmp_path: Path) -> None:
    file = tmp_path / "lengths"
    for text in ("5 7\n11", "[5, 7, 11]"):
        file.write_text(text)
        assert read_lengths(file) == (5, 7, 11)
    for text in ("", "[]", "5 x", "[5, 0]", "[1.5]", "[true]", "[1"):
        file.write_text(text)
        with pytest.raises(ValueError, match=str(file)):
            read_lengths(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_lengths(tmp_path / "absent")


def test_parameters_of_named_shapes_are_those_of_the_models() -> None:
    billions = {name: shape.parameters / 1e9 for name, shape in MODELS.items()}
    expected = {"qwen2.5-7b": 7.62, "qwen2.5-72b": 72.7, "llama3-8b": 8.03, "qwen3-8b": 8.19, "eagle2.5-8b": 8.06}
    assert billions == pytest.approx(expected, rel=0.002)


CONFIG = {
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


@pytest.mark.parametrize("config", [CONFIG, {"text_config": CONFIG, "vision_config": {"hidden_size": 1152}}])
def test_a_config_gives_the_shape_of_its_text_part(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        found = load_model(str(path))
        assert replace(found, name="qwen2.5-7b") == QWEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"num_key_value_heads": 5}, "not a multiple of kv_heads"),
    ],
)
def test_a_config_outside_the_cost_model_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ValueError, match=message):
        load_model(str(file))


def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llama3-8b"):
        load_model("no-such-model")
    broken = tmp_path / "config.json"
    for text, message in (("{", "is not JSON"), ("[]", "expected an object")):
        broken.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_model(str(broken))


def test_the_command_prints_a_table_an_explanation_and_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "qwen2.5-7b", "--context", "128K", "--gpus", "8", "--batch-tokens", "128K", "--top", "3"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    header = next(line for line in told.splitlines() if "MFU" in line)
    assert all(column in header for column in ("dp", "ring", "ulysses", "layout", "tok/s/GPU", "GiB", "bound by"))
    assert told.index("bound by") < told.index("Best:") < told.index("Rates were measured on")
    table = told[told.index("bound by") : told.index("Best:")].strip().splitlines()[1:]
    assert len(table) == 3
    assert "peak" in told
    assert "Median error on points that were not fitted" in told


def test_the_command_prints_json_with_every_measured_point(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "qwen2.5-7b", "--context", "64K", "--gpus", "4", "--documents", "sft", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    best = told["plans"][0]
    assert best["choice"]["dp"] * best["choice"]["cp_ring"] * best["choice"]["cp_ulysses"] == 4
    assert best["step_seconds"] == pytest.approx(sum(best["time"].values()))
    assert {"measured", "predicted", "error", "fitted"} <= set(told["calibration"]["points"][0])


def test_lengths_from_a_file_say_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("30000 2000 768")
    assert main(["plan", "--model", "llama3-8b", "--gpus", "2", "--documents", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["context"] == 32768
    assert main(["plan", "--model", "llama3-8b", "--gpus", "2", "--documents", str(file), "--context", "4K"]) == 2
    assert "leave --context out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "1K", "--gpus", "1", "--model", "gpt"], "neither one of"),
        (["--gpus", "1", "--model", "llama3-8b"], "--context is missing"),
        (["--context", "1K", "--gpus", "0", "--model", "llama3-8b"], "gpus must be"),
        (["--context", "1K", "--gpus", "1", "--model", "llama3-8b", "--documents", "absent"], "nor a file of lengths"),
        (["--context", "1K", "--gpus", "1", "--model", "llama3-8b", "--top", "0"], "--top must be"),
    ],
)
def test_a_command_that_makes_no_run_says_the_mend(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_token_count_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--model", "llama3-8b", "--gpus", "1", "--context", "12Q"])
    assert "invalid token count value: '12Q'" in capsys.readouterr().err


def test_a_run_that_fits_nowhere_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "qwen2.5-72b", "--context", "1M", "--gpus", "1"]) == 1
    assert "NOTHING FITS" in capsys.readouterr().out
