"""`eagle-data curate` from end to end: films to samples that `eagle-data prepare` takes, against a server that speaks the
protocol."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from eagle_data.cli import app
from eagle_data.curate.pipeline import CurateReport, curate
from eagle_data.curate.question_types import QUESTION_TYPES
from eagle_data.curate.recipe import load_curate_recipe
from eagle_data.errors import EagleDataError
from eagle_data.prepared import PreparedDataset
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from .chat_server import ChatServer, Plan, chat_server
from .scene_files import copy_real, write_scenes


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_recipe(folder: Path, server: ChatServer | None, **changes: Any) -> Path:
    """A recipe on the films in `folder`/media; the story and clip levels are on where there is a server."""
    content: dict[str, Any] = {
        "videos": ["media"],
        "root": "media",
        "existing_videos": ["known"],
        "clips": {"seconds": 2, "shortest": 1, "fps": 2},
        "diversity": {"within": 0.9},
    }
    if server is not None:
        content["endpoint"] = {
            "url": server.url,
            "model": "small",
            "backoff": 0.01,
            "timeout": 5,
            "concurrency": 3,
            "attempts": 3,
        }
        content["clip_level"] = {"questions": 3}
        content["story_level"] = {"chapters": "chapters.jsonl", "questions": 4}
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two films of new scenes; scene 1 is known already (other size and quality), and scene 4 comes twice."""
    write_scenes(tmp_path / "known" / "old.mp4", [1, 9], size=(160, 120), crf=30)
    write_scenes(tmp_path / "media" / "one.mp4", [1, 2, 3, 4])
    write_scenes(tmp_path / "media" / "deep" / "two.mp4", [5, 4, 6], crf=28, dim=10)
    (tmp_path / "media" / "broken.mp4").write_bytes(b"nothing")
    chapters = [
        {
            "video": "one.mp4",
            "chapters": [{"start": 0, "end": 4, "title": "Begin"}, {"start": 4, "end": 8.5, "title": "End <i>"}],
        },
        {"video": "deep/two.mp4", "chapters": [{"start": 0, "end": 6, "title": "All"}]},
        {"video": "unknown.mp4", "chapters": []},
    ]
    (tmp_path / "chapters.jsonl").write_text("\n".join(map(json.dumps, chapters)))
    return tmp_path


def test_the_whole_path_to_samples_that_prepare_takes(films: Path, raw_tokenizer: Tokenizer):
    with chat_server() as server:
        recipe = write_recipe(films, server)
        result = run("curate", recipe, "--out", films / "out")
        assert result.exit_code == 0, result.output
        assert server.wrong == []
    out = films / "out"
    assert "clips: 5 kept of 7, compared with 2" in result.stdout
    chosen = {(line["video"], line["start"]): line for line in lines(out / "selection.jsonl")}
    assert {place for place, line in chosen.items() if not line["kept"]} == {("one.mp4", 0.0), ("one.mp4", 6.0)}
    assert chosen["one.mp4", 6.0]["nearest"] == "deep/two.mp4@2.000-4.000"
    assert chosen["one.mp4", 0.0]["nearest"].endswith("old.mp4@0.000-2.000")
    # 5 clips with two requests each, 2 chapters, 1 story; the film of one chapter is left out with the reason.
    report = json.loads((out / "report.json").read_text())
    assert (report["captioned"], report["stories"], report["requests"], report["missing"]) == (5, 1, 13, 0)
    rejects = lines(out / "rejects.jsonl")
    assert [reject["where"].rsplit("/", 1)[-1] for reject in rejects] == ["broken.mp4", "chapters.jsonl:2"]
    assert "1 chapters, the recipe asks for 2" in rejects[1]["reason"]

    clips, videos, stories = (lines(out / f"{name}.jsonl") for name in ("clips", "videos", "stories"))
    assert len(clips) == len(videos) == 5
    for clip, video in zip(clips, videos, strict=True):
        assert clip["video"]["end_time"] - clip["video"]["start_time"] == pytest.approx(2)
        assert video["video"] == clip["video"]["video"]
        types = clip["curated"]["types"]
        assert set(types) <= set(QUESTION_TYPES)
        asked = [turn["value"] for turn in clip["conversations"][::2]]
        assert asked == [f"{'' if i else '<video>' + chr(10)}What about {name}?" for i, name in enumerate(types)]
        for anchored, name in zip(video["conversations"][::2], types, strict=True):
            assert anchored["value"].endswith(f"What about {name}?")
            assert (
                f"Between {clip['video']['start_time']:.1f} s" in anchored["value"]
                or clip["curated"]["caption"] in anchored["value"]
            )
    assert [story["video"] for story in stories] == ["one.mp4"]

    model = films / "model"
    model.mkdir()
    raw_tokenizer.save(str(model / "tokenizer.json"))
    config = {"vision_config": {"image_size": 32, "patch_size": 8}, "max_dynamic_tiles": 4, "use_thumbnail": True}
    (model / "config.json").write_text(json.dumps(config))
    prepared = run("prepare", out / "data.json", "--out", films / "prepared", "--model", model, "--context-length", 4096)
    assert prepared.exit_code == 0, prepared.output
    assert "clips: 5 read, 5 prepared, 0 rejected" in prepared.stdout
    assert "videos: 5 read, 5 prepared, 0 rejected" in prepared.stdout
    assert len(PreparedDataset(films / "prepared" / "stories", 4096)) == 1


def test_a_second_run_asks_nothing_and_gives_the_same_files(films: Path):
    with chat_server() as server:
        recipe = load_curate_recipe(write_recipe(films, server))
        curate(recipe, films / "out")
        asked = len(server.asked)
        names = ("clips.jsonl", "videos.jsonl", "stories.jsonl", "data.json", "selection.jsonl", "review.html")
        before = {name: (films / "out" / name).read_bytes() for name in names}
        planned: list[Any] = []
        curate(recipe, films / "out", announce=lambda _, estimate: planned.append(estimate))
        assert len(server.asked) == asked
        assert {name: (films / "out" / name).read_bytes() for name in names} == before
    assert (planned[0].finished, planned[0].requests, planned[0].cost) == (asked, {}, 0)


def test_pictures_of_the_clip_itself_reach_the_model(tmp_path: Path):
    folder = copy_real(tmp_path / "media")
    recipe_changes = {
        "existing_videos": ["media/carphone_pristine.mp4"],
        "videos": ["media/carphone_distorted.mp4", "media/b*.mp4"],
    }
    with chat_server() as server:
        recipe = write_recipe(
            tmp_path, server, clips={"seconds": 2.5}, diversity={"within": None}, endpoint={"picture": 100}, **recipe_changes
        )
        content = yaml.safe_load(recipe.read_text())
        del content["story_level"]
        recipe.write_text(yaml.safe_dump(content))
        report = curate(load_curate_recipe(recipe), tmp_path / "out")
        sizes = set(server.pictures)
    kept = {line["video"] for line in lines(tmp_path / "out" / "selection.jsonl") if line["kept"]}
    assert kept == {"bikes.mp4", "bigbuckbunny.mp4"}
    assert (report.clips - report.kept, report.captioned) == (2, report.kept)
    assert sizes == {(100, 56), (100, 42)}
    assert folder.is_dir()


def test_the_estimate_comes_before_anything_is_asked(films: Path):
    with chat_server() as server:
        changes = {"endpoint": {"price_in": 100.0, "price_out": 400.0, "max_tokens": 1000, "key_env": "NOT_SET"}}
        result = run("curate", write_recipe(films, server, **changes), "--out", films / "out", "--estimate")
        assert result.exit_code == 0, result.output
        assert server.asked == []
    assert "requests to ask: 13 (5 caption, 5 questions, 2 chapter, 1 story); 0 finished earlier" in result.stdout
    planned = json.loads((films / "out" / "estimate.json").read_text())
    # 4 frames of each clip and 8 of each chapter, 256 tokens a frame.
    assert planned["pictures"] == 5 * 4 + 2 * 8
    assert 36 * 256 < planned["input_tokens"] < 36 * 256 + 13 * 1000
    assert planned["output_tokens"] == 7 * 300 + 5 * 3 * 45 + 4 * 45
    assert planned["most_output_tokens"] == 13_000
    assert planned["cost"] == pytest.approx((planned["input_tokens"] * 100 + planned["output_tokens"] * 400) / 1e6)
    assert re.search(r"cost, about: \d+\.\d\d, at most", result.stdout)


def test_a_run_over_its_budget_or_without_its_key_asks_nothing(films: Path, monkeypatch: pytest.MonkeyPatch):
    with chat_server(key="k-1") as server:
        dear = write_recipe(films, server, endpoint={"price_in": 100.0, "budget": 0.01})
        result = run("curate", dear, "--out", films / "out")
        assert result.exit_code == 2
        assert "budget is 0.01" in result.stderr
        keyed = write_recipe(films, server, endpoint={"key_env": "CURATE_TEST_KEY"})
        result = run("curate", keyed, "--out", films / "out")
        assert result.exit_code == 2
        assert "CURATE_TEST_KEY" in result.stderr
        assert server.asked == []
        monkeypatch.setenv("CURATE_TEST_KEY", "k-1")
        assert run("curate", keyed, "--out", films / "out").exit_code == 0
    assert all(b"k-1" not in path.read_bytes() for path in (films / "out").glob("*.*"))


def counted(films: Path, plan: Plan, **endpoint: Any) -> tuple[CurateReport, ChatServer]:
    with chat_server(plan) as server:
        report = curate(load_curate_recipe(write_recipe(films, server, endpoint=endpoint)), films / "out")
    return report, server


def test_a_server_that_fails_now_and_then_changes_nothing(films: Path):
    mischief = ["500", "words", "drop", "429", "key", "half", "", "", "", "", ""]
    report, server = counted(films, lambda number, digest: mischief[number * 7 % 11], attempts=12)
    rough = (films / "out" / "clips.jsonl").read_text()
    assert (report.captioned, report.stories, report.missing, report.stopped) == (5, 1, 0, "")
    assert report.retries == len(server.asked) - 13 > 5
    assert report.requests == 13 + sum(mischief[number * 7 % 11] in ("words", "key") for number in range(len(server.asked)))
    for name in ("journal.jsonl", "clips.jsonl"):
        (films / "out" / name).unlink()
    counted(films, lambda number, digest: "")
    smooth = (films / "out" / "clips.jsonl").read_text()
    # Seals name the body that was answered, and a corrected request has another body.
    assert re.sub("seal [0-9a-f]+", "", rough) == re.sub("seal [0-9a-f]+", "", smooth)


def test_a_server_that_dies_loses_nothing_and_the_next_run_asks_only_for_the_rest(films: Path):
    report, first = counted(films, lambda number, digest: "" if number < 6 else "503", concurrency=1, stop_after=2, attempts=2)
    assert "2 requests in a row failed" in report.stopped
    assert report.requests == 6
    assert report.captioned == len(lines(films / "out" / "clips.jsonl")) == 3
    answered = set(first.asked[:6])
    assert report.missing > 0
    report, second = counted(films, lambda number, digest: "", concurrency=1)
    assert (report.captioned, report.stories, report.missing, report.requests) == (5, 1, 0, 13)
    assert len(second.asked) == 7
    assert not answered & set(second.asked)
    assert lines(films / "out" / "rejects.jsonl")[0]["where"] == "broken.mp4"


def test_one_answer_that_is_never_right_costs_one_clip(films: Path):
    with chat_server(lambda number, digest: "words" if number == 0 else "") as server:
        path = write_recipe(films, server, endpoint={"attempts": 1, "concurrency": 1})
        result = run("curate", path, "--out", films / "out")
    assert result.exit_code == 0
    assert "captioned: 4 clips" in result.stdout
    reasons = [reject["reason"] for reject in lines(films / "out" / "rejects.jsonl")]
    assert sum("not one JSON object" in reason for reason in reasons) == 1


def test_the_page_shows_clips_captions_and_questions_and_runs_nothing(films: Path):
    with chat_server() as server:
        curate(load_curate_recipe(write_recipe(films, server)), films / "out")
    page = (films / "out" / "review.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img loading="lazy" src="([^"]+)"', page)
    assert len(pictures) == 7
    assert all((films / "out" / picture).read_bytes()[:2] == b"\xff\xd8" for picture in pictures)
    assert page.count("<article") == 7 + 1
    assert page.count('class="dropped"') == 2
    assert "pictures &lt;b&gt;&amp;&lt;/b&gt; no people" in page
    assert "End &lt;i&gt;" in page
    assert "<script" not in page
    for line in lines(films / "out" / "clips.jsonl"):
        for name in line["curated"]["types"]:
            assert f"What about {name}? <code>{name}</code>" in page
    [first, *_] = re.findall(r'<a href="([^"#]+)#t=0,2"', page)
    assert (films / "out" / first).resolve() == (films / "media" / "deep" / "two.mp4").resolve()
    assert "broken.mp4" in page


def test_many_clips_fill_several_pages(tmp_path: Path):
    write_scenes(tmp_path / "media" / "long.mp4", range(20, 30), seconds=4)
    write_scenes(tmp_path / "known" / "old.mp4", [1])
    recipe = load_curate_recipe(
        write_recipe(tmp_path, None, clips={"seconds": 0.5, "shortest": 0.1, "fps": 2}, diversity={"within": None})
    )
    report = curate(recipe, tmp_path / "out")
    assert report.clips == 80
    assert (tmp_path / "out" / "review.html").read_text().count("<article") == 60
    assert (tmp_path / "out" / "review-2.html").read_text().count("<article") == 20
    assert not (tmp_path / "out" / "review-3.html").exists()


def test_what_an_earlier_run_kept_is_known_to_the_next(films: Path):
    first = curate(load_curate_recipe(write_recipe(films, None)), films / "out")
    again = write_recipe(films, None, existing_videos=[], existing_runs=["out"])
    second = curate(load_curate_recipe(again), films / "again")
    assert (first.kept, second.existing) == (5, 5)
    new = [line for line in lines(films / "again" / "selection.jsonl") if line["kept"]]
    assert [(line["video"], line["start"]) for line in new] == [("one.mp4", 0.0)]  # scene 1 was known to the first run only


def test_vectors_are_kept_and_made_anew_when_a_film_changes(films: Path):
    recipe = load_curate_recipe(write_recipe(films, None))
    curate(recipe, films / "out")
    stored = {path: path.stat().st_mtime_ns for path in (films / "out" / "embeddings").iterdir()}
    curate(recipe, films / "out")
    assert {path: path.stat().st_mtime_ns for path in (films / "out" / "embeddings").iterdir()} == stored
    write_scenes(films / "media" / "one.mp4", [7, 8])
    assert curate(recipe, films / "out").clips == 5
    assert len(list((films / "out" / "embeddings").iterdir())) == len(stored) + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"videos": ["nothing/*.mp4"]}, "names no video"),
        ({"root": "media/deep"}, "lies outside the root"),
        ({"existing_runs": ["media"]}, "name the --out folder"),
        ({"videos": ["media/broken.mp4"]}, "no clip of 1 videos can be used"),
        ({"diversity": {"embedder": "clip"}}, "there is no embedder 'clip'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes: dict[str, Any], words: str, films: Path):
    result = run("curate", write_recipe(films, None, **changes), "--out", films / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    with pytest.raises(EagleDataError):
        curate(load_curate_recipe(films / "recipe.yaml"), films / "out")
