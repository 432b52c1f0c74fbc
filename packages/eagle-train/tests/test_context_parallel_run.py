"""A run on two ranks that it starts itself: its losses are one process's, also when a rank is killed or the user stops it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from eagle_train.checkpoints import list_checkpoints, load_state
from eagle_train.errors import Interrupted, RankError, RecipeError, TrainingError
from eagle_train.launch import result, starts_ranks
from eagle_train.ranks import device_of
from eagle_train.recipe import Recipe
from eagle_train.recipe_files import dump_recipe, load_recipe


def losses(folder: Path) -> list[float]:
    progress = load_state(list_checkpoints(folder / "checkpoints")[-1])["progress"]
    return [loss for stage in progress for loss in stage["losses"]]


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    """The rank processes by rank; their order of birth."""
    children = [child for child in launcher.children() if "eagle_train.rank" in child.cmdline()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def start(file: Path, when: Path | None = None, act: Callable[[psutil.Process], Any] | None = None) -> tuple[int, str]:
    """Run a recipe's command line and act on it when a file matching `when` appears that was not there."""
    command = [sys.executable, "-m", "eagle_train.cli", "run", str(file)]
    before = set(when.parent.glob(when.name)) if when else set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while when is not None and act is not None and process.poll() is None:
            if set(when.parent.glob(when.name)) - before:
                act(psutil.Process(process.pid))
                break
            time.sleep(0.002)
        output, _ = process.communicate(timeout=200)
    return process.returncode, output


def test_a_run_on_two_ranks_goes_the_way_of_one_process_through_a_killed_rank_and_ctrl_c(
    tmp_path: Path, quick_recipe: Callable[..., Recipe], finished: Path, stable: Callable[[Path], dict[str, Any]]
):
    folder, file = tmp_path / "a run", tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(quick_recipe(folder, "parallel.cp=2")))
    checkpoints = folder / "checkpoints" / "step-*"

    code, output = start(file, checkpoints, lambda launcher: ranks_of(launcher)[1].kill())
    assert code == 1, output
    assert "error: rank 1 of 2 was killed by SIGKILL" in output
    assert "Traceback" not in output

    code, output = start(file, checkpoints, lambda launcher: launcher.send_signal(signal.SIGINT))
    assert code == 130, output
    assert "Stopped." in output
    assert "Traceback" not in output

    code, output = start(file)
    assert code == 0, output
    assert "going on after step" in output
    assert "checkpoint-final" in output
    assert losses(folder) == pytest.approx(losses(finished), abs=1e-5)
    report, alone = stable(folder), stable(finished)
    assert report["samples"] == alone["samples"]
    assert [stage["tokens"] for stage in report["stages"]] == [stage["tokens"] for stage in alone["stages"]]
    assert list(folder.rglob("*.part")) == []


def test_ranks_end_when_the_command_that_started_them_is_killed(tmp_path: Path, quick_recipe: Callable[..., Recipe]):
    folder, file = tmp_path / "run", tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(quick_recipe(folder, "parallel.cp=2")))
    orphans: list[psutil.Process] = []

    def kill(launcher: psutil.Process) -> None:
        orphans.extend(ranks_of(launcher))
        launcher.kill()

    start(file, folder / "run.json", kill)
    assert len(orphans) == 2
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert alive == []


def test_ranks_that_torchrun_started_start_no_others(monkeypatch: pytest.MonkeyPatch):
    recipe = load_recipe("quickstart", ["parallel.cp=2"])
    for world, expected in ((None, True), ("", True), ("1", True), ("2", False)):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
        assert starts_ranks(recipe) is expected
    monkeypatch.delenv("WORLD_SIZE")
    assert not starts_ranks(load_recipe("quickstart"))


def test_more_ranks_than_cuda_devices_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 ranks on this machine need as many CUDA devices, but there are 1"):
        device_of(load_recipe("quickstart", ["parallel.cp=2", "engine.device=auto"]))
    assert device_of(load_recipe("quickstart", ["parallel.cp=2", "engine.device=cpu"])).type == "cpu"


def outcomes(folder: Path, *kinds: str | None) -> Path:
    """Outcome files by rank, the last rank's first in time; None leaves none."""
    for rank, kind in enumerate(kinds):
        if kind is not None:
            outcome = {"kind": kind, "message": f"said by {rank}", "time": 100 - rank}
            (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))
    return folder


@pytest.mark.parametrize(
    ("kinds", "codes", "error", "message"),
    [
        (("crash", "crash"), (1, 1), RankError, "rank 1 of 2 failed:\nsaid by 1"),
        (("crash", "TrainingError"), (1, 1), TrainingError, "rank 1 of 2: said by 1"),
        (("RecipeError", None), (1, None), RecipeError, "^said by 0"),
        (("crash", None), (1, -11), RankError, "rank 1 of 2 was killed by SIGSEGV"),
        (("crash", None), (1, -9), RankError, "may lack the memory"),
        (("Interrupted", "Interrupted"), (130, 130), Interrupted, "^$"),
        (("KeyboardInterrupt", "crash"), (130, 1), KeyboardInterrupt, "^$"),
        ((None, "crash"), (-2, 1), KeyboardInterrupt, "^$"),
        ((None, "done"), (0, 0), RankError, "rank 0 of 2 ended without a result"),
    ],
)
def test_the_rank_that_failed_first_is_named(
    tmp_path: Path, kinds: tuple[str | None, ...], codes: tuple[int | None, ...], error: type[BaseException], message: str
):
    with pytest.raises(error, match=message):
        result(outcomes(tmp_path, *kinds), codes)


def test_what_the_first_rank_found_to_do_is_the_result(tmp_path: Path):
    assert result(outcomes(tmp_path, "done", "done"), (0, 0)) is True
    assert result(outcomes(tmp_path, "finished", "finished"), (0, 0)) is False


def test_the_last_words_of_a_killed_rank_are_passed_on(tmp_path: Path):
    (tmp_path / "rank-1.log").write_text("out of memory, say")
    with pytest.raises(RankError, match="It last said:\nout of memory, say"):
        result(tmp_path, (None, -6))
