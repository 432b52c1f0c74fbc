"""A user's own recipe with everything wrong in its data: each bad line counted with file and line, every good one trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_train.recipe_files import load_recipe
from PIL import Image

GOOD = {1, 2, 9, 10}
REASONS = {
    3: "gone.png",
    4: "cut.mp4",
    5: "torn.jpg",
    6: "not JSON",
    7: "image",
    8: "conversation is empty",
}


@pytest.fixture
def folder(tmp_path: Path, media: Path, write_lines: Callable[..., Path], talk: Callable[..., dict[str, Any]]) -> Path:
    """`train.jsonl` with four good lines and one of every kind of bad one, held-out questions, and their media."""
    whole = (media / "clip.mp4").read_bytes()
    (media / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(media / "torn.jpg")
    (media / "torn.jpg").write_bytes((media / "torn.jpg").read_bytes()[:1500])
    write_lines(
        [
            talk("Say red.", "Red."),
            talk("<image>\nColour?", "Red.", image="red.png"),
            talk("<image>\nColour?", "Red.", image="gone.png"),
            talk("<video>\nWhat?", "Noise.", video="cut.mp4"),
            talk("<image>\nWhat?", "Noise.", image="torn.jpg"),
            '{"conversations": [',
            talk("<image-1> <image-2> Same?", "No.", image="red.png"),
            {"image": "red.png", "conversations": []},
            talk("<video>\nWhat?", "Noise.", video="clip.mp4"),
            talk("<image>\nWhat?", "Noise.", image="wide.jpg"),
        ]
    )
    write_lines([talk("<image>\nColour?", image="red.png"), talk("<image>\nColour?", image="gone.png")], "asked.jsonl")
    return tmp_path


@pytest.mark.parametrize("verify", [True, False])
def test_bad_samples_are_counted_with_file_line_and_reason_and_every_good_one_is_trained_on(
    folder: Path, toy_folder: Path, run: Callable[..., str], verify: bool
):
    (folder / "my.yaml").write_text(
        f"""
        name: mine
        run_dir: {folder / "run"}
        data:
          datasets: {{mine: {{annotation: train.jsonl, root: media}}}}
          verify: {str(verify).lower()}
          min_frames: 2
        model: {{path: {toy_folder}}}
        engine: {{device: cpu, threads: 1}}
        stages: [{{name: only, context_length: 256, epochs: 1, lr: 1e-3}}]
        evaluation: {{sets: {{colour: asked.jsonl}}, root: media, max_new_tokens: 2}}
        """
    )
    output = run(load_recipe(str(folder / "my.yaml")))
    text = (folder / "run" / "report.json").read_text()
    report = json.loads(text)
    assert report["samples"] == {"read": 10, "trained": len(GOOD), "rejected": len(REASONS), "degraded": 0}
    found = {int(reject["where"].rpartition(":")[2]): reject for reject in report["rejects"]}
    assert found.keys() == REASONS.keys()
    for line, part in REASONS.items():
        assert found[line]["where"] == f"../train.jsonl:{line}"
        assert part in found[line]["reason"]
    assert report["questions"] == {"overall": 1, "colour": 1}
    assert [reject["where"] for reject in report["questions_rejected"]] == ["../asked.jsonl:2"]
    assert "Rejected samples: 6." in output
    assert "Rejected held-out questions: 1." in output
    assert str(folder) not in text
    page = (folder / "run" / "report.html").read_text()
    assert all(f"train.jsonl:{line}" in page for line in REASONS)


def test_two_ranks_drop_what_one_of_them_cannot_read_and_report_it_as_one_process_does(
    folder: Path, toy_folder: Path, run: Callable[..., str]
):
    """Each rank decodes its own tiles only, so that each meets other broken files; the first rank writes of all of them."""
    (folder / "my.yaml").write_text(
        f"name: mine\ndata: {{datasets: {{mine: {{annotation: train.jsonl, root: media}}}}, verify: false, min_frames: 2}}\n"
        f"model: {{path: {toy_folder}}}\nengine: {{device: cpu, threads: 1}}\n"
        "stages: [{name: only, context_length: 256, epochs: 1, lr: 1e-3}]\n"
    )
    reports = []
    for ranks in (1, 2):
        run(load_recipe(str(folder / "my.yaml"), [f"run_dir={folder / f'run-{ranks}'}", f"parallel.cp={ranks}"]))
        report = json.loads((folder / f"run-{ranks}" / "report.json").read_text())
        reports.append({name: report[name] for name in ("samples", "rejects")} | {"stages": report["stages"]})
    one, two = reports
    assert one["samples"]["rejected"] == len(REASONS)
    assert two["samples"] == one["samples"]
    assert two["rejects"] == one["rejects"]
    assert [stage["tokens"] for stage in two["stages"]] == [stage["tokens"] for stage in one["stages"]]


def test_data_without_one_good_sample_end_in_a_clear_error(folder: Path, toy_folder: Path, run: Callable[..., str]):
    (folder / "train.jsonl").write_text("nonsense\n")
    (folder / "my.yaml").write_text(
        f"name: mine\nrun_dir: {folder / 'run'}\ndata: {{datasets: {{mine: {{annotation: train.jsonl}}}}}}\n"
        f"model: {{path: {toy_folder}}}\nstages: [{{name: only, context_length: 256, epochs: 1}}]\n"
    )
    with pytest.raises(Exception, match=r"stage 'only': no prepared sample fits.*train.jsonl:1: the line is not JSON"):
        run(load_recipe(str(folder / "my.yaml")))


def test_a_run_goes_on_from_another_working_directory(
    folder: Path, toy_folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (folder / "my.yaml").write_text(
        "name: mine\ndata: {recipe: data.json}\nmodel: {path: start}\n"
        "stages: [{name: only, context_length: 256, epochs: 1}]\nengine: {device: cpu, threads: 1}\n"
    )
    (folder / "data.json").write_text(json.dumps({"mine": {"annotation": "train.jsonl", "root": "media"}}))
    (folder / "start").symlink_to(toy_folder)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    reports = []
    for place, path in ((folder, "my.yaml"), (elsewhere, "../my.yaml")):
        monkeypatch.chdir(place)
        recipe = load_recipe(path, [f"run_dir={folder / 'run'}"])
        run(recipe)
        reports.append((folder / "run" / "report.json").read_text())
    assert reports[0] == reports[1]
