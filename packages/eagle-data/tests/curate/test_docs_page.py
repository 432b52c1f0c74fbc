"""The worked example of the documentation runs as it is printed, on the real clips, against the local server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from eagle_data.cli import app
from tokenizers import Tokenizer
from typer.testing import CliRunner

from .chat_server import chat_server
from .scene_files import copy_real

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "curate-videos.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the tests")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_worked_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_tokenizer: Tokenizer):
    copy_real(tmp_path / "probe")  # skips where the clips are not installed
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "runs" / "quickstart" / "checkpoint-final"
    model.mkdir(parents=True)
    raw_tokenizer.save(str(model / "tokenizer.json"))
    config = {"vision_config": {"image_size": 32, "patch_size": 8}, "max_dynamic_tiles": 6, "use_thumbnail": True}
    (model / "config.json").write_text(json.dumps(config))
    [copying] = blocks("python")
    exec(compile(copying, str(PAGE), "exec"), {})
    [recipe] = blocks("yaml")
    [chapters] = blocks("json")
    Path("chapters.jsonl").write_text(chapters)
    printed = []
    with chat_server() as server:
        text = recipe.replace("http://127.0.0.1:8000/v1", server.url)
        text = re.sub(r"model: \S+", "model: small", text)
        Path("films.yaml").write_text(text)
        commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("uv run eagle-data ")]
        assert [shlex.split(command)[3] for command in commands] == ["curate", "curate", "prepare"]
        for command in commands:
            result = CliRunner().invoke(app, shlex.split(command)[3:])
            assert result.exit_code == 0, result.output
            printed.append(result.stdout)
        assert server.wrong == []
    said = [line for line in blocks("text")[0].splitlines() if line.strip()]
    assert said == printed[0].splitlines()
    assert "0 rejected" in printed[2]
