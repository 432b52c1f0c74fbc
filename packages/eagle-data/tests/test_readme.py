"""The README's examples run as they are printed, one after the other, on real files."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.annotations import parse_record
from eagle_data.cli import app
from PIL import Image
from tokenizers import Tokenizer
from typer.testing import CliRunner

from .media_files import numbered_picture, write_video

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, raw_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the README names."""
    model = tmp_path / "runs" / "quickstart" / "checkpoint-final"
    model.mkdir(parents=True)
    raw_tokenizer.save(str(model / "tokenizer.json"))
    config = {"vision_config": {"image_size": 32, "patch_size": 8}, "max_dynamic_tiles": 6, "use_thumbnail": True}
    (model / "config.json").write_text(json.dumps(config))
    Image.fromarray(numbered_picture(5, 320, 200)).save(tmp_path / "page.png")
    Image.fromarray(numbered_picture(6, 2000, 1800)).save(tmp_path / "photo.jpg")
    write_video(tmp_path / "talk.mp4", frames=100)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "page.png", "d/a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_and_command_runs(place: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"{README}:{number}", "exec"), names)
        if "batch" in names and number == 0:
            assert names["reports"]["cats"].rejected == 1
            assert len(names["batch"].provenance) == 4
            assert np.isfinite(names["batch"].pixel_values).all()
    printed = capsys.readouterr().out
    plans = [line.split()[:2] for line in printed.splitlines() if line.startswith(("4096", "32768", "524288"))]
    assert [int(frames) for _, frames in plans] == sorted({int(frames) for _, frames in plans})
    assert "524288 1200 (4, 2)" in printed
    assert names["small"].size == (1000, 900)
    assert names["frames"].pixels.shape == (2, 448, 448, 3)
    assert len(names["even"]) == 8
    assert names["report"].stored == 1
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("eagle-data ")]
    assert len(commands) == 8
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output


def test_every_line_of_the_schema_is_a_sample():
    lines = [line for block in blocks("json") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert parse_record(json.loads(line), dataset="d", where="README.md").messages
