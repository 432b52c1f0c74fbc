"""The documentation's tables and the README's: made from result files, newest first, and in step with them."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
HOOK = ROOT / "docs" / "_bench_tables.py"
if not HOOK.exists():
    pytest.skip("the documentation is not beside the package here", allow_module_level=True)
SPEC = spec_from_file_location("bench_tables_hook", HOOK)
assert SPEC is not None
assert SPEC.loader is not None
tables = sys.modules["bench_tables_hook"] = module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


def _row(case, impl, value, rows=32768, **more):
    return {"case": case, "impl": impl, "shape": {"rows": rows, "hidden": 3584}, "value": value, "unit": "TB/s", **more}


def _write(folder, name, date, rows, **more):
    head = {"hardware": "NVIDIA H200", "versions": {"torch": "2.11"}, "commit": "0123456789abcdef", "command": "python run.py"}
    (folder / name).write_text(json.dumps({**head, "date": date, "rows": rows, **more}))


def test_the_newest_file_of_each_case_is_shown(tmp_path):
    _write(tmp_path, "z.json", "2026-01-01", [_row("rope", "eagle", 1.0), _row("swiglu_forward", "eagle", 2.0)])
    _write(tmp_path, "a.json", "2026-01-02", [_row("rope", "eagle", 3.0), _row("rope_inexact", "liger", 4.0)])
    measured = tables.read(tmp_path)
    assert [(row["case"], row["value"]) for row in measured.rows] == [
        ("rope", 3.0),
        ("rope_inexact", 4.0),
        ("swiglu_forward", 2.0),
    ]
    assert [content["date"] for content in measured.files] == ["2026-01-02", "2026-01-01"]


def test_a_page_shows_every_peer_the_targets_the_plot_and_what_is_missing(tmp_path):
    rows = [_row("rms_norm_forward", "eagle", 4.4, 65536), _row("rms_norm_forward", "eagle", 4.051, floor=4.27)]
    rows += [_row("rms_norm_forward", "quack", 4.02), _row("rms_norm_forward_inexact", "liger", 9.9)]
    _write(tmp_path, "r.json", "2026-01-01", rows, absent=[{"impl": "cce", "case": None, "reason": "no wheel"}])
    page = tables.page("eagle-kernels", tables.read(tmp_path))
    line = next(line for line in page.splitlines() if "32768 rows" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("rms_norm_forward", "32768 rows", "4.05", "quack", "4.02", "9.90*", "4.27"),
        "at least 4.00 TB/s: reached (4.05)",
    ]
    assert "reached" not in next(line for line in page.splitlines() if "65536 rows" in line)
    assert page.count("<svg") == 1
    assert "liger*" in page
    assert "cce: no wheel" in page


def test_without_a_result_file_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PACKAGES", tmp_path)
    assert tables.on_page_markdown("before\n<!-- bench: eagle-kernels -->\nafter") == f"before\n{tables.NOTHING}\nafter"


def test_a_readme_out_of_step_is_found_and_mended_between_its_marks_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PACKAGES", tmp_path / "packages")
    results = tmp_path / "packages" / "eagle-x" / "benchmarks" / "results"
    results.mkdir(parents=True)
    readme = tmp_path / "packages" / "eagle-x" / "README.md"
    readme.write_text(f"# x\n\n{tables.BEGIN}\nold\n{tables.END}\n\nlast words\n")
    _write(results, "r.json", "2026-01-01", [_row("rope", "eagle", 3.0), _row("rope", "compile", 2.5)])
    assert tables.stale(write=False, say=lambda _: None) == [readme]
    assert "old" in readme.read_text()
    tables.stale(write=True, say=lambda _: None)
    assert "| rope | TB/s | 3.00 | 2.50 (compile) | - |" in readme.read_text()
    assert readme.read_text().endswith(f"{tables.END}\n\nlast words\n")
    assert tables.stale(write=False) == []


def test_the_readme_of_this_package_is_in_step_with_the_committed_results():
    readme = ROOT / "packages" / "eagle-kernels" / "README.md"
    if not list(tables.results_folder("eagle-kernels").glob("*.json")) or tables.BEGIN not in readme.read_text(encoding="utf-8"):
        pytest.skip("no result file, or no measured part in the README")
    assert readme not in tables.stale(write=False)
