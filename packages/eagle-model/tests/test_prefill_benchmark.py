"""The prefill benchmark: its operation count, its problem, and that it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not beside the tests")


@pytest.fixture
def prefill(monkeypatch: Any) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import prefill as module  # pyright: ignore[reportMissingImports]

    yield module
    for name in ("prefill", "prefill_operations", "square_tensors", "model_bench", "model_bench.targets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("select_layer", [-1, -2])
@pytest.mark.parametrize("layers", [1, 2])
def test_operations_equal_what_torch_counts(prefill: Any, make_model: Any, select_layer: int, layers: int):
    model = make_model(select_layer=select_layer, mlp_connector_layers=layers, attention="eager", dtype=torch.float32)
    tiles, words = 3, 20
    ids = torch.tensor([[*[model.config.image_token_index] * 4 * tiles, *range(1, words + 1)]])
    tokens = ids.shape[1]
    pixels = torch.randn(tiles, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, pixel_values=pixels, logits_to_keep=1)
    # What is timed is `generate`: no part of it may be encoded twice, and the head sees the last row only.
    with FlopCounterMode(display=False) as first_token:
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert first_token.get_total_flops() == counter.get_total_flops()
    counted = prefill.prefill_operations(model.config, tiles=tiles, tokens=tokens)
    # Eager attention computes every pair, of which causal ones are (tokens + 1) / 2 tokens.
    every_pair = counted.language_attention * 2 * tokens // (tokens + 1)
    # Some versions of transformers make the rotary angles by a little matrix product, which is no part of the problem.
    modules = counter.get_flop_counts()
    rotary = sum(sum(counts.values()) for name, counts in modules.items() if name.endswith("rotary_emb"))
    assert counter.get_total_flops() - rotary == counted.total - counted.language_attention + every_pair


def test_the_full_size_is_the_released_shape_and_138_thousand_tokens(prefill: Any):
    problem = prefill.Problem(prefill.released_8b(), 512, 200, 64, 8192)
    assert 137_000 < problem.tokens < 139_000
    with torch.device("meta"):
        model = prefill.Eagle2_5_VLForConditionalGeneration(problem.config)
    assert 8.0e9 < sum(parameter.numel() for parameter in model.parameters()) < 8.2e9
    total = prefill.prefill_operations(problem.config, tiles=512, tokens=problem.tokens).total
    assert 5.9e15 < total < 6.4e15


def test_frames_and_words_of_the_prompt_are_where_they_belong(prefill: Any):
    problem = prefill.Problem(prefill.toy(), 3, 5, 2, 8)
    inputs = prefill.inputs_of(problem, torch.device("cpu"), torch.float32)
    context = inputs["input_ids"][0] == problem.config.image_token_index
    assert inputs["input_ids"].shape == (1, problem.tokens) == (1, 3 * 17 + 5)
    assert context.sum() == 3 * problem.config.num_image_token
    assert context.nonzero()[:4].squeeze(1).tolist() == [12, 13, 14, 15]
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)


@pytest.mark.parametrize("extra", [[], ["--cache", "static", "--attention", "packed_sdpa", "--sdpa-backend", "flash"]])
def test_a_quick_run_writes_every_row_with_its_setting(prefill: Any, tmp_path: Any, extra: list[str]):
    out = tmp_path / "results" / "prefill.json"
    assert prefill.main(["--quick", "--device", "cpu", "--runs", "3", "--commit", "abc", "--out", str(out), *extra]) == 0
    result = json.loads(out.read_text())
    assert result["commit"] == "abc"
    assert {"hardware", "versions", "driver", "date", "command", "spread", "operations", "settings"} <= result.keys()
    assert {"eagle-model", "torch", "transformers"} <= result["versions"].keys()
    assert result["squares"]["tokens_by_tokens"] == []
    rows = {row["case"]: row for row in result["rows"]}
    assert set(rows) == {
        *("prefill_first_token", "prefill_share_of_matmul", "prefill_rate", "prefill_tokens", "decode", "matmul_256"),
    }
    assert all(row["value"] > 0 for row in rows.values())
    seconds, rate = rows["prefill_first_token"]["value"], rows["matmul_256"]["value"]
    expected = result["operations"]["total"] / (rate * 1e12) / seconds
    assert rows["prefill_share_of_matmul"]["value"] == pytest.approx(expected, rel=1e-6)
    assert rows["prefill_share_of_matmul"]["floor"] == 0.45
    assert all(row["runs"] == 3 for case, row in rows.items() if not case.startswith("matmul"))


def test_a_run_that_makes_a_mask_of_tokens_by_tokens_fails(prefill: Any, tmp_path: Any, capsys: Any):
    out = tmp_path / "prefill.json"
    assert prefill.main(["--quick", "--device", "cpu", "--runs", "1", "--out", str(out), "--attention", "eager"]) == 1
    tokens = prefill.Problem(prefill.toy(), 6, 20, 8, 256).tokens
    assert [1, 1, tokens, tokens] in json.loads(out.read_text())["squares"]["tokens_by_tokens"]
    assert f"missed: a tensor of (1, 1, {tokens}, {tokens})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "peak", "words"),
    [(0.45, 79.9, []), (0.449, 70.0, ["share"]), (0.5, 80.0, ["memory"]), (0.1, 90.0, ["share", "memory"])],
)
def test_at_full_size_share_and_memory_are_bars(prefill: Any, share: float, peak: float, words: list[str]):
    rows = [{"case": "prefill_first_token", "value": 15.0, "peak_gib": peak}, {"case": "prefill_share_of_matmul", "value": share}]
    result = {"rows": rows, "squares": {"tokens_by_tokens": []}}
    missed = prefill.missed_bars(result, full_size=True)
    assert len(missed) == len(words)
    assert all(word in line for word, line in zip(words, missed, strict=True))
    assert prefill.missed_bars(result, full_size=False) == []
