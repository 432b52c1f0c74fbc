"""The command line: counts on stdout, errors with exit code 2, and a quick `--help`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from eagle_data.cli import app
from eagle_data.contact_sheet import clock, layout_for
from eagle_data.lmdb_store import write_lmdb
from eagle_data.policies import choose, parse_policy
from eagle_data.prepared import PreparedDataset
from eagle_data.video import open_video
from PIL import Image
from pyarrow import parquet
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from .corpus_files import write_annotations, write_media
from .media_files import cut_without_reencoding, number_in, numbered_picture, write_video


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


def test_the_recipe_can_say_the_checkpoint_and_the_lengths_and_options_win(recipe: Path, checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    without = run("prepare", recipe, "--out", out, "--workers", 0)
    assert (without.exit_code, without.stderr.count("\n"), without.stdout) == (2, 1, "")
    assert f"{recipe} names no checkpoint folder; write model: FOLDER into it, or pass --model FOLDER" in without.stderr
    default = run("prepare", recipe, "--out", out, "--model", checkpoint, "--workers", 0)
    assert default.exit_code == 0, default.output
    assert "context 32768:" in default.stdout
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "model": "model", "context_lengths": [128, 512]}))
    said = run("prepare", recipe, "--out", out, "--workers", 0)
    assert said.exit_code == 0, said.output
    assert re.findall(r"context (\d+):", said.stdout) == ["128", "512"]
    assert re.findall(r"context (\d+):", run("prepare", recipe, "--out", out, "--context-length", 256).stdout) == ["256"]
    other = run("prepare", recipe, "--out", out, "--model", tmp_path / "none")
    assert (other.exit_code, "config.json does not exist" in other.stderr) == (2, True)


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


def test_inspect_tells_streams_groups_rate_and_damage(tmp_path: Path):
    options = {"g": "10", "bf": "2", "preset": "medium", "x264-params": "keyint=10:scenecut=0:b-adapt=0"}
    path = write_video(tmp_path / "v.mp4", frames=75, options=options, sound=True)
    output = run("inspect", path, "--check").stdout
    assert "stream: video h264, 96 x 64, yuv420p" in output
    assert "stream: audio aac, 8000 Hz, mono" in output
    assert "groups of pictures: 8 of 5 to 10 frames, median 10 (B-frames)" in output
    assert "rate: constant" in output
    assert "damage: none found in 75 decoded frames" in output
    vfr = write_video(tmp_path / "w.mp4", frames=20, pts=[n * (n + 1) // 2 for n in range(20)], time_base=Fraction(1, 25))
    assert "rate: variable, frames lie 0.04 to 0.76 s apart" in run("inspect", vfr).stdout
    cut = cut_without_reencoding(write_video(tmp_path / "c.mp4", frames=60), tmp_path / "cut.mp4", 10)
    assert "hidden: 10 pictures are decoded and not displayed" in run("inspect", cut).stdout


def test_inspect_finds_damaged_frames(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=75, options={"g": "25", "preset": "medium"}, size=(192, 128))
    data = bytearray(path.read_bytes())
    with open_video(path) as video:
        assert video.index is not None
        at = int(video.index.offset[30])
    data[at + 8 : at + 60] = b"\xff" * 52
    path.write_bytes(data)
    output = run("inspect", path, "--check").stdout
    assert re.search(r"damage: \d+ of 75 frames are damaged or missing: \d", output)
    assert "damage: 0" not in output


@pytest.mark.parametrize("policy", ["uniform:5", "seconds:0,1.5,2.9", "segment:4", "fps:1,4,8@1-3"])
def test_inspect_draws_the_frames_that_a_policy_chose(policy: str, tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=75, options={"g": "20"})
    result = run("inspect", path, "--policy", policy, "--sheet", tmp_path / "s.png")
    assert result.exit_code == 0, result.output
    chosen = [int(n) for n in re.findall(r"(\d+) \(", result.stdout.split("frames taken: ")[1])]
    with open_video(path) as video:
        expected = list(choose(video, parse_policy(policy)).indices)
    assert chosen == expected
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width == 1600
        assert found_on(sheet.convert("RGB"), len(expected)) == expected


def found_on(sheet: Image.Image, count: int) -> list[int]:
    """The numbers of the pictures on a sheet, read back from their pixels at the places that the layout gives them."""
    layout = layout_for(96, 64, count)
    (width, height), columns = layout.size, layout.columns
    pixels = np.asarray(sheet)
    numbers = []
    for place in range(count):
        row, column = divmod(place, columns)
        top, left = 140 + row * (height + 34 + 20), 48 + column * (width + 20)
        picture = Image.fromarray(pixels[top : top + height, left : left + width]).resize((96, 64))
        numbers.append(number_in(np.asarray(picture)))
    return numbers


def test_inspect_draws_tiles_and_refuses_impossible_sheets(tmp_path: Path):
    Image.new("RGB", (640, 480), "orange").save(tmp_path / "a.png")
    assert run("inspect", tmp_path / "a.png", "--sheet", tmp_path / "s.jpg").exit_code == 0
    with Image.open(tmp_path / "s.jpg") as sheet:
        assert sheet.width == 1600
    video = write_video(tmp_path / "v.mp4", frames=120)
    many = run("inspect", video, "--policy", "uniform:120", "--sheet", tmp_path / "t.png")
    assert (many.exit_code, "too many for a sheet" in many.stderr) == (2, True)
    nowhere = run("inspect", video, "--sheet", tmp_path / "no" / "t.png")
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (2, True)
    unknown = run("inspect", video, "--policy", "often")
    assert (unknown.exit_code, "is no sampling policy" in unknown.stderr) == (2, True)


def test_inspect_lists_an_archive_and_looks_at_its_members(tmp_path: Path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    clip = write_video(tmp_path / "v.mp4", frames=20)
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "d/a.png")
        archive.add(clip, "v.mp4")
    listing = run("inspect", tmp_path / "t.tar").stdout
    assert "members: 2" in listing
    assert "t.tar::d/a.png" in listing
    assert "size: 640 x 480 px" in run("inspect", f"{tmp_path / 't.tar'}::d/a.png").stdout
    assert "frames: 20 at 25.000 fps" in run("inspect", f"{tmp_path / 't.tar'}::v.mp4").stdout


def test_inspect_names_the_cells_of_a_table(tmp_path: Path):
    Image.fromarray(numbered_picture(1, 64, 64)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    columns = {"n": [1], "image": [data], "hf": [{"bytes": data, "path": "a.png"}], "name": ["a"]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    result = run("inspect", tmp_path / "t.parquet")
    assert "rows: 1\n" in result.stdout
    assert "columns that may hold media: image, hf\n" in result.stdout
    cells = [line.strip() for line in result.stdout.splitlines() if line.startswith("  ")]
    assert cells == [f"{tmp_path / 't.parquet'}::{column}::0" for column in ("image", "hf")]
    for cell in cells:
        assert "tiles: 1 column x 1 row of 448 px" in run("inspect", cell).stdout


def test_frames_writes_the_chosen_frames_and_says_which_they_are(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=60)
    result = run("frames", path, "--out", tmp_path / "f", "--policy", "seconds:0.5,2,1")
    assert result.exit_code == 0, result.output
    assert "3 frames in" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "f" / "frames.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["second"], line["corrupt"]) for line in lines] == [
        (12, 0.48, False),
        (50, 2.0, False),
        (25, 1.0, False),
    ]
    for line in lines:
        with Image.open(tmp_path / "f" / line["file"]) as picture:
            assert number_in(np.asarray(picture)) == line["frame"]
    small = run("frames", path, "--out", tmp_path / "g", "--policy", "uniform:2", "--kind", "jpg", "--size", "48x32")
    assert small.exit_code == 0, small.output
    with Image.open(tmp_path / "g" / "frame-000059.jpg") as picture:
        assert picture.size == (48, 32)
    for option in (("--kind", "bmp"), ("--size", "48"), ("--backend", "opencv")):
        wrong = run("frames", path, "--out", tmp_path / "h", *option)
        assert (wrong.exit_code, wrong.stderr.startswith("error: ")) == (2, True)


def test_bench_times_the_reader_on_a_file(tmp_path: Path):
    path = write_video(tmp_path / "v.mp4", frames=60)
    result = run("bench", path, "--count", 4, "--count", 8, "--runs", 1, "--size", "48x32")
    assert result.exit_code == 0, result.output
    assert re.findall(r"^eagle +(open|uniform \d+) +[0-9.]+ ms", result.stdout, flags=re.MULTILINE) == [
        "open",
        "uniform 4",
        "uniform 8",
    ]
    assert run("bench", path, "--unknown").exit_code == 2


def test_a_store_is_made_and_turned_back_from_the_command_line(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        Image.fromarray(numbered_picture(number)).save(tmp_path / "pictures" / f"{number}.png")
    made = run("to-lmdb", tmp_path / "pictures", "--out", tmp_path / "store")
    assert made.exit_code == 0, made.output
    assert "5 entries: 5 stored and checked" in made.stdout
    assert "5 of them by an earlier run" in run("to-lmdb", tmp_path / "pictures", "--out", tmp_path / "store").stdout
    back = run("from-lmdb", tmp_path / "store", "--out", tmp_path / "back.tar")
    assert back.exit_code == 0, back.output
    with tarfile.open(tmp_path / "back.tar") as archive:
        assert archive.getnames() == [f"{number}.png" for number in range(5)]
    taken = run("from-lmdb", tmp_path / "store", "--out", tmp_path / "back.tar")
    assert (taken.exit_code, "exists" in taken.stderr) == (2, True)
    (tmp_path / "a.jsonl").write_text('{"image": "none.png"}\n')
    rejected = run("to-lmdb", tmp_path / "a.jsonl", "--out", tmp_path / "empty")
    assert "0 stored and checked (0 bytes), 1 rejected" in rejected.stdout
    assert "rejects.jsonl says which and why" in rejected.stderr


@pytest.mark.parametrize(
    ("second", "text"), [(0, "0:00.00"), (59.999, "1:00.00"), (61.5, "1:01.50"), (3723.25, "1:02:03.25"), (-0.5, "-0:00.50")]
)
def test_a_sheet_prints_seconds_as_a_clock(second: float, text: str):
    assert clock(second) == text


def test_help_imports_no_media_library():
    code = (
        "import sys\nfrom eagle_data.cli import main\nsys.argv = ['eagle-data', 'prepare', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('av', 'pyarrow', 'numpy', 'PIL', 'lmdb', 'tokenizers', 'torch') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert "--context-length" in output


def test_help_takes_less_than_half_a_second():
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from eagle_data.cli import main; main()", "--help"], capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
