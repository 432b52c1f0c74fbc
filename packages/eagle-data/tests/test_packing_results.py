"""The committed results of packing: the documentation's page is made from them, and they reach the bars."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "packing_tables.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not beside the tests")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = spec_from_file_location("packing_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["packing_tables"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recorded_packs_are_full_made_quickly_and_balanced(tables: ModuleType):
    rows = tables.newest("mix")["rows"]
    free = [row for row in rows if row["shape"]["max_tiles"] is None or row["shape"]["max_tiles"] >= 128]
    assert len(free) >= 2
    assert len(rows) > len(free)
    for row in rows:
        assert row["value"] >= 100_000
    for row in free:
        assert row["token_fill"] >= 0.999
        assert row["balance"] <= 1.02


def test_where_tiles_bind_they_are_filled(tables: ModuleType):
    bound = [row for row in tables.newest("mix")["rows"] if (row["shape"]["max_tiles"] or 128) < 128]
    assert all(row["tile_fill"] >= 0.99 for row in bound)


def test_recorded_resumes_are_quick_and_states_small(tables: ModuleType):
    rows = {row["case"]: row for row in tables.newest("resume")["rows"]}
    assert rows["loader_resumed"]["value"] < 1
    assert all(row["shape"]["rows"] >= 10_000_000 for row in rows.values())
    assert 0 < rows["loader_resumed"]["state_bytes"] < 100_000
    if "opened_and_resumed" in rows:
        assert rows["opened_and_resumed"]["state_bytes"] < 100_000
