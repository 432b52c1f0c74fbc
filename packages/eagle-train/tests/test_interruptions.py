"""A run that is killed or stopped at many moments and started again ends as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eagle_train.recipe import Recipe
from eagle_train.recipe_files import dump_recipe

MOMENTS = (
    ("the corpus is written", signal.SIGKILL, ("corpus.part/media",)),
    ("data are prepared", signal.SIGINT, ("prepared/*/*.part", "prepared/*/done.json")),
    ("a checkpoint is written", signal.SIGKILL, ("checkpoints/.step-*.part",)),
    ("steps are taken", signal.SIGINT, ("checkpoints/step-*",)),
    ("the evaluation runs", signal.SIGINT, ("checkpoint-final",)),
)
"""What goes on when a signal is sent: at the first new file in the run folder that matches."""


# A shell's background job ignores SIGINT, and so does every process below it that does not say otherwise.
COMMAND = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('eagle_train.cli', run_name='__main__')"
)


class Sender:
    """Starts a run's command line and sends it a signal at a moment; gives its exit code and output."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.file = folder.parent / "recipe.yaml"
        self.file.write_text(dump_recipe(recipe))

    def __call__(self, patterns: tuple[str, ...], number: signal.Signals) -> tuple[int, str]:
        command = [sys.executable, "-c", COMMAND, "run", str(self.file)]
        before = {path for pattern in patterns for path in self.folder.glob(pattern)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None:
                if any(path not in before for pattern in patterns for path in self.folder.glob(pattern)):
                    process.send_signal(number)
                    break
                time.sleep(0.001)
            output, _ = process.communicate()
        return process.returncode, output


def test_a_run_stopped_at_many_moments_reports_what_an_undisturbed_one_reports(
    tmp_path: Path,
    quick_recipe: Callable[..., Recipe],
    finished: Path,
    run: Callable[..., str],
    stable: Callable[[Path], dict[str, Any]],
):
    folder = tmp_path / "a run"
    recipe = quick_recipe(folder)
    send = Sender(folder, recipe)
    for moment, number, patterns in MOMENTS:
        code, output = send(patterns, number)
        assert not (folder / "report.json").exists(), f"the run ended before the signal came while {moment}"
        if number == signal.SIGKILL:
            assert code == -number, f"{moment}: {output}"
        else:
            assert code == 130, f"{moment}: {output}"
            assert "Stopped." in output, moment
            assert "Traceback" not in output, moment
    output = run(recipe)
    assert "going on after step" in output
    assert stable(folder) == stable(finished)
    assert list(folder.rglob("*.part")) == []
