"""The command line: counts on stdout, errors with exit code 2, and a quick `--help`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eagle_data.cli import app
from eagle_data.lmdb_store import write_lmdb
from eagle_data.prepared import PreparedDataset
from PIL import Image
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from .corpus_files import write_annotations, write_media
from .media_files import numbered_picture, write_video


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def checkpoint(tmp_path: Path, raw_tokenizer: Tokenizer) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    raw_tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vision_config": {"image_size": 32, "patch_size": 8}, "max_dynamic_tiles": 4, "use_thumbnail": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_media(tmp_path / "media")
    write_annotations(tmp_path / "a.jsonl")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"cats": {"annotation": "a.jsonl", "root": "media"}}))
    return path


def test_prepare_writes_every_context_length_and_prints_the_counts(recipe: Path, checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    lengths = ("--context-length", 128, "--context-length", 512)
    result = run("prepare", recipe, "--out", out, "--model", checkpoint, *lengths, "--min-frames", 4, "--verify")
    assert result.exit_code == 0, result.output
    assert "cats: 21 read, 9 prepared, 12 rejected" in result.stdout
    assert "context 128:" in result.stdout
    assert "  rejected, missing media: 4\n" in result.stdout
    assert "rejects.jsonl says where and why" in result.stderr
    assert len(PreparedDataset(out / "cats", 512)) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "none.json"}, "none.json"),
        ({"model": "none"}, "config.json does not exist"),
        ({"dialect": "relaesed"}, "unknown prompt dialect"),
    ],
)
def test_what_cannot_be_done_exits_with_2_and_one_line(
    change: dict[str, str], words: str, recipe: Path, checkpoint: Path, tmp_path: Path
):
    values = {"recipe": str(recipe), "model": str(checkpoint), "dialect": "released", **change}
    result = run(
        *("prepare", values["recipe"], "--out", tmp_path / "out", "--model", values["model"]),
        *("--context-length", 64, "--dialect", values["dialect"]),
    )
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_misspelt_recipe_key_is_named_with_its_neighbour(checkpoint: Path, tmp_path: Path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"d": {"anotation": "x"}}))
    result = run("prepare", path, "--out", tmp_path, "--model", checkpoint, "--context-length", 64)
    assert result.exit_code == 2
    assert "did you mean 'annotation'?" in result.stderr


def test_inspect_shows_the_tiles_of_an_image(tmp_path: Path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    result = run("inspect", tmp_path / "a.png")
    assert result.exit_code == 0
    assert "size: 640 x 480 px" in result.stdout
    assert "tiles: 4 columns x 3 rows of 448 px, 13 with thumbnail, 3328 context tokens" in result.stdout


def test_inspect_shows_the_frames_of_a_video(tmp_path: Path):
    result = run("inspect", write_video(tmp_path / "v.mp4", frames=75))
    assert "size: 96 x 64 px, rotated by 0 degrees" in result.stdout
    assert "frames: 75 at 25.000 fps, 3.000 s" in result.stdout
    assert "released policy: 6 frames at 2.00 fps, 1536 context tokens" in result.stdout
    assert "frames taken: 0 (0.00 s), 15 (0.60 s), 30 (1.20 s), 44 (1.76 s), 59 (2.36 s), 74 (2.96 s)" in result.stdout


def test_inspect_takes_a_long_video_a_short_one_an_animation_and_a_folder(tmp_path: Path):
    assert ", …, " in run("inspect", write_video(tmp_path / "long.mp4", frames=250)).stdout
    one = run("inspect", write_video(tmp_path / "one.mp4", frames=1))
    assert one.exit_code == 0
    assert "released policy: 0 frames asked of a video of 1" in one.stdout
    pictures = [Image.fromarray(numbered_picture(n)) for n in range(8)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=500)
    assert "frames: 8 at 2.000 fps, 4.000 s" in run("inspect", tmp_path / "a.gif").stdout
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "frames" / f"{number}.png")
    assert "frames: 8 at 1.000 fps, 8.000 s (one a second)" in run("inspect", tmp_path / "frames").stdout


def test_inspect_lists_a_store_with_its_bad_values(tmp_path: Path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    items = [(f"{n:02d}", (tmp_path / "a.png").read_bytes()) for n in range(10)]
    write_lmdb(tmp_path / "s", [*items, ("00bad", b"junk")])
    result = run("inspect", tmp_path / "s")
    assert "entries: 11, of which the first 8:" in result.stdout
    assert "  00: 100 x 50 px, 2 x 1 tiles, 768 context tokens" in result.stdout
    assert "  00bad: is not an image that Pillow knows" in result.stdout


def test_inspect_of_a_missing_and_of_a_damaged_file_exits_with_2(tmp_path: Path):
    missing = run("inspect", tmp_path / "none.mp4")
    assert (missing.exit_code, "no such file" in missing.stderr) == (2, True)
    Image.fromarray(numbered_picture(3, 200, 120)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    damaged = run("inspect", tmp_path / "a.jpg")
    assert (damaged.exit_code, "truncated or corrupt" in damaged.stderr, damaged.stdout) == (2, True, "")


def test_help_imports_no_media_library():
    code = (
        "import sys\nfrom eagle_data.cli import main\nsys.argv = ['eagle-data', 'prepare', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('av', 'pyarrow', 'numpy', 'PIL', 'lmdb', 'tokenizers', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert "--context-length" in output
