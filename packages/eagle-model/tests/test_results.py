"""The committed results of the prefill reach the bars, the bars can be missed, and what is shown comes from the files."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DOCS = BENCHMARKS.parents[2] / "docs" / "_bench_tables.py"
FILES = sorted((BENCHMARKS / "results").glob("prefill*.json"))
pytestmark = pytest.mark.skipif(
    not (FILES and DOCS.is_file()), reason="the benchmarks or the documentation are not beside the tests"
)


def load(path: Path, name: str) -> ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return load(DOCS, "model_bench_docs")


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return load(BENCHMARKS / "model_bench" / "targets.py", "model_bench_targets")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load(BENCHMARKS / "model_bench" / "tables.py", "model_bench_tables")


def rows_with(share: float, peak: float | None, squares: list[Any]) -> list[dict[str, Any]]:
    whole = {"squares": {"largest_tensor": 10, "tokens_by_tokens": squares}}
    return [
        {"case": "prefill_first_token", "value": 10.0, "peak_gib": peak, **whole},
        {"case": "prefill_share_of_matmul", "value": share, **whole},
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_prefill_of_138_thousand_tokens_reaches_share_and_memory_without_a_square(path: Path):
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in result["rows"]}
    assert "H200" in result["hardware"]
    assert result["settings"]["quick"] is False
    assert rows["prefill_first_token"]["shape"] == {"frames": 512, "tokens": 137928, "new_tokens": 64}
    assert rows["prefill_share_of_matmul"]["value"] >= 0.45
    assert rows["prefill_first_token"]["peak_gib"] < 80
    assert result["squares"]["tokens_by_tokens"] == []
    assert 0 < result["squares"]["largest_tensor"] < 137928**2
    assert rows["decode"]["unit"] == "tokens/s"
    seconds, rate = rows["prefill_first_token"]["value"], rows["matmul_8192"]["value"] * 1e12
    assert rows["prefill_share_of_matmul"]["value"] == pytest.approx(result["operations"]["total"] / rate / seconds, rel=1e-6)


def test_the_verdicts_on_the_committed_rows_are_all_reached(docs: ModuleType, targets: ModuleType):
    verdicts = targets.judge(docs.read(BENCHMARKS / "results").rows)
    assert [verdict.reached for verdict in verdicts] == [True, True, True]


@pytest.mark.parametrize(
    ("share", "peak", "squares", "reached"),
    [
        (0.45, 79.9, [], [True, True, True]),
        (0.449, 79.9, [], [False, True, True]),
        (0.5, 80.0, [], [True, False, True]),
        (0.5, None, [[1, 9, 9]], [True, None, False]),
    ],
)
def test_each_bar_can_be_missed(targets: ModuleType, share: float, peak: Any, squares: list[Any], reached: list[Any]):
    assert [verdict.reached for verdict in targets.judge(rows_with(share, peak, squares))] == reached


def test_of_several_settings_the_worst_counts_and_nothing_is_judged_without_rows(targets: ModuleType):
    rows = [*rows_with(0.9, 10.0, []), *rows_with(0.1, 90.0, [])]
    assert [verdict.reached for verdict in targets.judge(rows)] == [False, False, True]
    assert {verdict.reached for verdict in targets.judge([])} == {None}


def test_both_ways_of_running_stand_side_by_side_and_a_wide_spread_is_told(docs: ModuleType, tables: ModuleType):
    rows = docs.read(BENCHMARKS / "results").rows
    found = tables.columns(rows)
    assert set(found) >= {"sdpa", "eagle-kernels, sdpa (cudnn)"}
    page = "\n".join(tables.page(rows, []))
    for column in found.values():
        assert f"{column['prefill_first_token']['value']:.2f}" in page
    wide = [row for row in rows if row["spread"] >= tables.WIDE]
    assert page.count("(spread ") == len(wide)


def test_a_newer_file_replaces_only_its_own_settings(docs: ModuleType, tmp_path: Path):
    def write(name: str, date: str, backend: str, value: float) -> None:
        row = {"case": "decode", "impl": "eagle", "shape": {}, "value": value, "unit": "tokens/s"}
        (tmp_path / name).write_text(json.dumps({"date": date, "settings": {"sdpa_backend": backend}, "rows": [row]}))

    write("a.json", "2026-01-01", "auto", 1.0)
    write("b.json", "2026-01-02", "auto", 2.0)
    write("c.json", "2026-01-01", "cudnn", 3.0)
    assert [row["value"] for row in docs.read(tmp_path).rows] == [2.0, 3.0]


def test_the_readme_is_in_step_with_the_committed_results(docs: ModuleType):
    readme = BENCHMARKS.parent / "README.md"
    assert docs.BEGIN in readme.read_text(encoding="utf-8")
    assert readme not in docs.stale(write=False, say=lambda _: None)
