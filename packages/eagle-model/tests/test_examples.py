"""Each example runs as a script on a toy checkpoint and prints what the model answers."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eagle_model import Eagle2_5_VLForConditionalGeneration
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside the tests")


@pytest.fixture(scope="module")
def folder(make_config: Any, processor: Any, tmp_path_factory: Any) -> Any:
    """A toy checkpoint whose answers depend on its pictures, two pictures and a clip."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(4)
    model: Any = Eagle2_5_VLForConditionalGeneration(make_config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for name, shade in (("a.png", 30), ("b.png", 220)):
        Image.new("RGB", (64, 32), (shade, 255 - shade, 90)).save(folder / name)
    import av

    for name, shade in (("a.mp4", 40), ("b.mp4", 200)):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(20):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade + i, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return folder


def run(script: str, folder: Any, monkeypatch: Any, capsys: Any, *arguments: str) -> str:
    command = [script, "--model", str(folder / "model"), "--max-new-tokens", "8", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return capsys.readouterr().out


def test_an_answer_depends_on_the_picture_and_streaming_prints_the_same(folder: Any, monkeypatch: Any, capsys: Any):
    a = run("describe_image.py", folder, monkeypatch, capsys, "a.png", "What is this?")
    assert a.strip()
    assert a != run("describe_image.py", folder, monkeypatch, capsys, "b.png", "What is this?")
    assert run("stream_answer.py", folder, monkeypatch, capsys, "a.png", "What is this?") == a


def test_a_batch_answers_as_one_by_one(folder: Any, monkeypatch: Any, capsys: Any):
    alone = [run("describe_image.py", folder, monkeypatch, capsys, name, "What is this?") for name in ("a.png", "b.png")]
    batch = run("answer_batch.py", folder, monkeypatch, capsys, "a.png", "b.png", "--question", "What is this?")
    assert batch == f"a.png: {alone[0]}b.png: {alone[1]}"


def test_several_pictures_are_seen_in_order_and_bounded(folder: Any, monkeypatch: Any, capsys: Any):
    both = run("compare_images.py", folder, monkeypatch, capsys, "a.png", "b.png")
    assert both != run("compare_images.py", folder, monkeypatch, capsys, "b.png", "a.png")
    assert both != run("compare_images.py", folder, monkeypatch, capsys, "a.png", "b.png", "--max-tiles", "1")


def test_one_video_and_several_are_answered(folder: Any, monkeypatch: Any, capsys: Any):
    one = run("describe_videos.py", folder, monkeypatch, capsys, "a.mp4")
    assert one.strip()
    two = run("describe_videos.py", folder, monkeypatch, capsys, "a.mp4", "b.mp4", "--fps", "4", "--max-frames", "6")
    assert two.strip()
    assert two != one


def test_videos_are_sampled_at_the_rate_of_the_checkpoint_unless_asked_otherwise(
    folder: Any, tmp_path: Any, monkeypatch: Any, capsys: Any
):
    faster = tmp_path / "faster"
    shutil.copytree(folder, faster)
    settings = json.loads((faster / "model" / "processor_config.json").read_text())
    (faster / "model" / "processor_config.json").write_text(json.dumps({**settings, "video_fps": 8.0}))
    by_itself = run("describe_videos.py", faster, monkeypatch, capsys, "a.mp4")
    assert by_itself == run("describe_videos.py", folder, monkeypatch, capsys, "a.mp4", "--fps", "8")
    assert by_itself != run("describe_videos.py", folder, monkeypatch, capsys, "a.mp4")


def test_every_example_is_listed_and_tested():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in listed for name in scripts)
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in tested for name in scripts)
