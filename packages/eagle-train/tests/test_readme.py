"""The README's worked example does what it says, run as written but for the model it starts from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from eagle_train import load_recipe
from eagle_train.recipe import Recipe

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


def test_the_worked_example_runs_and_reports_what_the_readme_says(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    media, from_python = blocks("python")
    exec(compile(media, "README", "exec"), {})
    (recipe,) = blocks("yaml")
    recipe = recipe.replace("runs/quickstart/checkpoint-final", str(toy_folder))
    (tmp_path / "colours" / "recipe.yaml").write_text(recipe)
    exec(compile(from_python, "README", "exec"), {})
    report = json.loads((tmp_path / "runs" / "from-python" / "report.json").read_text())
    (claimed,) = blocks("json")
    said = json.loads("{" + claimed + "}")
    assert report["samples"] == said["samples"]
    assert [reject["where"] for reject in report["rejects"]] == [reject["where"] for reject in said["rejects"]]
    assert "lost.png: no such file" in report["rejects"][0]["reason"]
    assert report["questions"] == {"overall": 2, "colours": 2}


def test_every_key_of_the_table_is_a_key_of_a_recipe():
    table = README.read_text(encoding="utf-8").partition("| in a recipe | |")[2].partition("\n\n")[0]
    keys = re.findall(r"^\| `(\w+)`", table, flags=re.M)
    assert set(keys) <= {*Recipe.model_fields, "base"}
    assert len(keys) > 5


def test_the_overrides_shown_are_accepted():
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("eagle-train run quickstart")]
    assert commands
    for command in commands:
        load_recipe("quickstart", command.partition("#")[0].split()[3:])
