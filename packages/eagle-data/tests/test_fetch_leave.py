"""Leave to fetch addresses where datasets are prepared, loaded and inspected: none unless given, and then within its bounds."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.cli import app
from eagle_data.fetch import Fetch
from eagle_data.inspect_media import describe
from eagle_data.loader import Pack, Source, StatefulLoader
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer
from PIL import Image
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from .corpus_files import talk
from .media_files import numbered_picture, write_video
from .test_prepare import LONG, RULES
from .web_server import Whole, served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "web"
    place.mkdir()
    write_video(place / "clip.mp4", 40)
    Image.fromarray(numbered_picture(5, 200, 70)).save(place / "a.png")
    frames = [Image.fromarray(numbered_picture(number)) for number in range(6)]
    frames[0].save(place / "moves.gif", save_all=True, append_images=frames[1:], duration=200)
    return place


@pytest.fixture
def entry(ranges: str, folder: Path, tmp_path: Path) -> DatasetEntry:
    """Three samples: a picture and a video at addresses, and the picture as a file."""
    lines = [{"image": f"{ranges}/a.png", **talk()}, {"video": f"{ranges}/clip.mp4", **talk()}, {"image": "a.png", **talk()}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return DatasetEntry(annotation=tmp_path / "a.jsonl", root=folder)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def packs(folder: Path, fetch: Fetch | None) -> list[Pack]:
    source = Source(PreparedDataset(folder, LONG, fetch=fetch))
    loader = StatefulLoader([source], context_length=LONG, tile_size=32, seed=0, workers=0)
    return list(islice(loader, len(loader.epoch_packs(0))))


def test_a_dataset_with_addresses_is_prepared_and_loaded_only_with_leave(
    entry: DatasetEntry, asked: list[str], tokenizer: PromptTokenizer, tmp_path: Path
):
    def make(fetch: Fetch | None) -> DatasetReport:
        options: dict[str, Any] = {"context_lengths": {"d": [LONG]}, "rules": RULES, "tokenizer": tokenizer, "verify": True}
        return prepare({"d": entry}, tmp_path / "out", fetch=fetch, **options)["d"]

    assert make(None).prepared == 1
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) == 2
    assert all("is an address and fetching is off" in reject["reason"] for reject in rejects)
    assert make(Fetch(hosts=("example.org",))).prepared == 1
    assert asked == []

    assert make(Fetch()).prepared == 3
    assert {path.partition("?")[0] for path in asked} == {"/a.png", "/clip.mp4"}
    asked.clear()
    assert make(Fetch()).prepared == 3
    assert asked == []

    [refused] = packs(tmp_path / "out" / "d", None)
    assert len(refused.failures) == 2
    assert all("fetching is off" in reason for _, reason in refused.failures)
    assert asked == []
    [whole] = packs(tmp_path / "out" / "d", Fetch())
    assert whole.failures == ()
    pixels = {sample.where.rsplit(":", 1)[1]: sample.pixels for sample in whole.samples}
    assert np.array_equal(pixels["1"], pixels["3"])
    assert pixels["2"].shape[0] > 3


def test_prepare_takes_leave_from_the_command_line(
    entry: DatasetEntry, asked: list[str], raw_tokenizer: Tokenizer, tmp_path: Path
):
    model = tmp_path / "model"
    model.mkdir()
    raw_tokenizer.save(str(model / "tokenizer.json"))
    config = {"vision_config": {"image_size": 32, "patch_size": 8}, "max_dynamic_tiles": 4, "use_thumbnail": True}
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "r.json").write_text(json.dumps({"d": {"annotation": str(entry.annotation), "root": str(entry.root)}}))
    command = ("prepare", tmp_path / "r.json", "--out", tmp_path / "out", "--model", model, "--context-length", LONG)
    assert "d: 3 read, 1 prepared, 2 rejected" in run(*command).stdout
    assert "1 prepared" in run(*command, "--fetch-host", "example.org").stdout
    assert asked == []
    assert "d: 3 read, 3 prepared, 0 rejected" in run(*command, "--fetch-host", "127.0.0.1").stdout
    assert "3 prepared" in run(*command, "--fetch").stdout


def test_inspect_looks_at_an_address_only_with_leave(ranges: str, asked: list[str], tmp_path: Path):
    refused = run("inspect", f"{ranges}/a.png")
    assert refused.exit_code == 2
    assert "is an address and fetching is off" in refused.stderr
    assert "which is not allowed" in run("inspect", f"{ranges}/a.png", "--fetch-host", "example.org").stderr
    assert asked == []
    assert "size: 200 x 70 px" in run("inspect", f"{ranges}/a.png", "--fetch").stdout
    sheet = tmp_path / "s.png"
    result = run("inspect", f"{ranges}/clip.mp4", "--fetch", "--check", "--policy", "uniform:4", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    for words in ("frames: 40 at 25.000 fps", "stream: video h264, 96 x 64", "groups of pictures: ", "damage: none found in 40"):
        assert words in result.stdout
    assert Image.open(sheet).width == 1600
    assert "frames: 6 at 5.000 fps" in run("inspect", f"{ranges}/moves.gif", "--fetch-host", "127.0.0.1").stdout


def test_inspect_takes_a_picture_from_a_server_without_ranges(folder: Path):
    for server in served(partial(Whole, directory=str(folder))):
        assert "size: 200 x 70 px" in run("inspect", f"{server}/a.png", "--fetch").stdout
        result = run("inspect", f"{server}/gone.png", "--fetch")
        assert result.exit_code == 2
        assert "gone.png: could not be fetched" in result.stderr


def test_frames_of_an_address_are_written_only_with_leave(ranges: str, asked: list[str], tmp_path: Path):
    assert "fetching is off" in run("frames", f"{ranges}/clip.mp4", "--out", tmp_path / "f").stderr
    assert asked == []
    result = run("frames", f"{ranges}/clip.mp4", "--out", tmp_path / "f", "--policy", "uniform:3", "--fetch")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "f").glob("*.png"))) == 3


def test_the_bound_on_bytes_is_kept(ranges: str, folder: Path):
    with (folder / "large.png").open("wb") as file:
        file.write((folder / "a.png").read_bytes())
        file.write(bytes(2 << 20))
    result = run("inspect", f"{ranges}/large.png", "--fetch", "--fetch-mib", 1)
    assert result.exit_code == 2
    assert "is larger than 1048576 bytes" in result.stderr


def test_inspecting_a_large_video_fetches_its_tables_and_not_all_of_it(ranges: str, folder: Path):
    write_video(folder / "large.mp4", 60, size=(640, 480), options={"crf": "0"})
    with (folder / "large.mp4").open("ab") as file:  # a free box, so that the tables are not the end of the file
        file.write((4 << 20).to_bytes(4, "big") + b"free" + bytes((4 << 20) - 8))
    bound = Fetch(max_bytes=2 << 20)
    assert (folder / "large.mp4").stat().st_size > 2 * bound.max_bytes
    assert any("frames: 60" in line for line in describe(f"{ranges}/large.mp4", fetch=bound))
