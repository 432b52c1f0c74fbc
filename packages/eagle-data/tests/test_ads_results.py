"""The committed results of degradation sampling: the documentation's page is made from them, and they reach the bars."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "ads_tables.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not beside the tests")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = spec_from_file_location("ads_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["ads_tables"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_newest_result_files(tables: ModuleType):
    if not tables.PAGE.is_file():
        pytest.skip("the documentation is not beside the package")
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page()


def test_recorded_rates_reach_their_bars(tables: ModuleType):
    rates = {(row["case"], row["shape"]["context"]): row["value"] for row in tables.newest("rate")["rows"]}
    contexts = {context for _, context in rates}
    assert contexts >= {32768, 131072}
    for context in contexts:
        assert rates["plan_video", context] >= 2000
        assert rates["plan_other", context] >= 10_000
        assert rates["plan_document", context] >= 10_000


def test_recorded_plans_lose_no_text_and_fill_97_percent_of_each_video_kind(tables: ModuleType):
    ours = [row for row in tables.newest("compare")["rows"] if row["impl"] == "ADS"]
    assert {row["shape"]["context"] for row in ours} == {32768, 65536, 131072}
    for row in ours:
        assert (row["text_lost"], row["answers_cut"]) == (0, 0)
        assert row["tiles"] <= row["optimum_tiles"]
        if "video" in row["case"]:
            assert row["visual"] >= 0.97 * row["visual_budget"]
