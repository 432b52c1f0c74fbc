"""The run folder: one process, one recipe, nobody else's files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from eagle_train.errors import RecipeError, RunError
from eagle_train.run_folder import RunFolder


def open_(folder: RunFolder, recipe: str = "seed: 0\n", *, fresh: bool = False) -> bool:
    with folder.held():
        return folder.open(recipe, fresh=fresh)


def test_a_new_folder_has_work_left_until_it_has_a_report(tmp_path: Path):
    folder = RunFolder(tmp_path / "deep" / "run")
    assert open_(folder)
    assert open_(folder)
    folder.report_json.write_text("{}")
    assert not open_(folder)


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    open_(folder, "seed: 0\nstages:\n- {lr: 1}\n")
    with pytest.raises(RecipeError, match=r"seed: 0 there, 7 here; stages.0.lr: 1 there, nothing here.*--fresh.*name="):
        open_(folder, "seed: 7\nstages:\n- {}\n")
    assert open_(folder, "seed: 0\nstages:\n- {lr: 1}\n")


def test_fresh_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    open_(folder)
    folder.note(10.0, 2.0)
    (folder.corpus / "media").mkdir(parents=True)
    (folder.path / "start.part").mkdir()
    folder.report_json.write_text("{}")
    (folder.path / "notes.txt").write_text("mine")
    assert open_(folder, "seed: 1\n", fresh=True)
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "notes.txt", "recipe.yaml", "run.json"]
    assert folder.so_far() == (0.0, 0.0)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, fresh: bool):
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(RecipeError, match="not empty and not a run folder"):
        open_(RunFolder(tmp_path), fresh=fresh)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert (tmp_path / "corpus").is_dir()


def test_a_file_in_the_folders_place_is_a_clear_error(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RecipeError, match="cannot be a run folder"):
        open_(RunFolder(tmp_path / "run"))


def test_only_one_process_works_in_a_folder_and_a_dead_one_leaves_it_free(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from eagle_train.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(): print('held', flush=True); input()"
    )
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working"):
            open_(folder)
        other.kill()
    assert open_(folder)
