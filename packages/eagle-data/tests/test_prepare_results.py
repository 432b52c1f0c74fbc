"""The committed result of preparation: the documentation's page is made from it, and it reaches the bars."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "prepare_tables.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not beside the tests")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = spec_from_file_location("prepare_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["prepare_tables"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tables: ModuleType) -> list[dict[str, Any]]:
    return tables.newest()["rows"]


def of(rows: list[dict[str, Any]], case: str, impl: str = "local") -> list[dict[str, Any]]:
    return [row for row in rows if (row["case"], row["impl"]) == (case, impl)]


def test_the_page_is_made_from_the_newest_result_file(tables: ModuleType):
    if not tables.PAGE.is_file():
        pytest.skip("the documentation is not beside the package")
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page()


def test_an_unchanged_dataset_costs_three_percent_and_neighbours_redo_their_own_groups(rows: list[dict[str, Any]]):
    [again], [edited] = of(rows, "again"), of(rows, "edited_neighbours")
    assert again["shape"]["lines"] == 100_000
    assert again["share_of_cold"] <= 0.03
    assert edited["groups_redone"] <= 0.02 * edited["groups"]


def test_memory_does_not_grow_with_the_lines(rows: list[dict[str, Any]]):
    few, many = (
        next(row for row in of(rows, "cold") if row["shape"] == {**row["shape"], "workers": 2, "lines": lines})
        for lines in (20_000, 100_000)
    )
    assert many["peak_gib"] <= few["peak_gib"] + 0.1


def test_ray_gave_the_bytes_that_local_gave(tables: ModuleType, rows: list[dict[str, Any]]):
    assert of(rows, "cold", "ray")
    assert tables.newest()["failures"] == []
