"""A run on two ranks that it starts itself: its losses are one process's, also when a rank is killed or the user stops it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
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

launch_module = importlib.import_module("eagle_train.launch")


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


def test_a_run_on_two_ranks_goes_the_way_of_one_process_through_a_killed_rank(
    tmp_path: Path, quick_recipe: Callable[..., Recipe], finished: Path, stable: Callable[[Path], dict[str, Any]]
):
    folder, file = tmp_path / "a run", tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(quick_recipe(folder, "parallel.cp=2")))
    checkpoints = folder / "checkpoints" / "step-*"

    code, output = start(file, checkpoints, lambda launcher: ranks_of(launcher)[1].kill())
    assert code == 1, output
    assert "error: rank 1 of 2 was killed by SIGKILL" in output
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


STUB = """
import json, os, signal, sys, time
rank, folder, told = int(sys.argv[1]), sys.argv[2], []
def leave(number, frame):
    told.append(number)
    kind = "KeyboardInterrupt" if len(told) > 1 else "Interrupted"
    if kind == "Interrupted" and sys.argv[3] == "busy":
        return
    with open(os.path.join(folder, f"outcome-{rank}.json"), "w") as file:
        json.dump({"kind": kind, "message": "", "time": rank}, file)
    os._exit(130)
signal.signal(signal.SIGINT, leave)
open(os.path.join(folder, f"ready-{rank}"), "w").close()
time.sleep(60)
"""
"""A rank that does nothing but end as a real one does: after its step at the first Ctrl-C, at once at the second."""


@pytest.mark.parametrize(("pace", "presses", "error"), [("idle", 1, Interrupted), ("busy", 2, KeyboardInterrupt)])
def test_ctrl_c_reaches_every_rank_and_ends_the_command_as_it_ends_one_process(
    monkeypatch: pytest.MonkeyPatch, pace: str, presses: int, error: type[BaseException]
):
    ranks: list[subprocess.Popen[bytes]] = []

    def stub(folder: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", STUB, str(rank), str(folder), pace]
        ranks.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
        while not (folder / f"ready-{rank}").exists():
            assert ranks[-1].poll() is None
            time.sleep(0.01)
        if rank == world - 1:
            Thread(target=press).start()
        return ranks[-1]

    def press() -> None:
        for _ in range(presses):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(launch_module, "_start", stub)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(error):
        launch_module.launch(load_recipe("quickstart", ["parallel.cp=2"]))
    assert [process.poll() for process in ranks] == [130, 130]
    assert signal.getsignal(signal.SIGINT) is before


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
