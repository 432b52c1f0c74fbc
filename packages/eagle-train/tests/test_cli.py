"""The command line: light to start, exit code 2 and one message for what cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eagle_train.cli import app
from eagle_train.recipe_files import builtin_recipes, load_recipe
from typer.testing import CliRunner


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_built_in_recipes_are_listed_with_a_line_each():
    code, out, _ = call("recipes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(builtin_recipes())
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in out.splitlines())


def test_what_show_prints_is_the_recipe(tmp_path: Path):
    code, out, _ = call("show", "quickstart", "seed=5")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    assert load_recipe(str(tmp_path / "shown.yaml")) == load_recipe("quickstart", ["seed=5"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quickstrat"), "did you mean 'quickstart'"),
        (("show", "quickstrat"), "did you mean 'quickstart'"),
        (("run", "quickstart", "sede=1"), "unknown key 'sede' in Recipe; did you mean 'seed'"),
        (("run", "quickstart", "stages.0.learning_rate=1"), "unknown key 'learning_rate' in Stage"),
        (("run", "quickstart", "seed"), "is not key=value"),
        (("run", "quickstart", "engine.kind=deepspeed"), "not built yet"),
        (("run", "finetune-8b", "data.recipe=/nowhere/my.json"), "there is no file /nowhere/my.json"),
        (("--fresh", "run", "quickstart"), "--fresh belongs behind the command"),
    ],
)
def test_a_wrong_command_is_exit_code_2_with_a_message_and_no_traceback(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == [], "nothing may be written for a recipe that cannot run"


def test_recipes_are_read_and_refused_without_loading_torch(tmp_path: Path):
    code = (
        "import sys\nfrom eagle_train.cli import app\n"
        "import eagle_train\n"
        "for arguments in (['--help'], ['recipes'], ['show', 'quickstart'], ['run', 'quickstart', 'engine.kind=deepspeed']):\n"
        "    try: app(arguments, standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'sklearn', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_the_smoke_recipe_goes_the_whole_path_from_any_directory(tmp_path: Path):
    """What continuous integration runs of the quick start: its recipe with fewer samples and steps, through the command."""
    place = tmp_path / "some where"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "eagle_train.cli", "run", "smoke"],
        capture_output=True,
        text=True,
        cwd=place,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "runs" / "smoke" / "report.json").read_text())
    recipe = load_recipe("smoke")
    assert [stage["steps"] for stage in report["stages"]] == [stage.steps for stage in recipe.stages]
    assert report["stages"][-1]["loss_last"] < report["pretraining"][1]["loss_first"]
    assert done.stderr == "", "nothing of other libraries may come between our own lines"
