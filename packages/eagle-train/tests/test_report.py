"""The report: a curve that shows the losses, pictures not chosen by outcome, and a page with every figure of the values."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from eagle_train.evaluation import Answer, Question
from eagle_train.report import Curve, choose_shown, data_uri, loss_svg, show, smooth, write_report
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def answers(task: str, count: int, right: int) -> list[Answer]:
    return [
        Answer(Question(task, f"{task}:{i}", (), f"{task} question {i}", "yes"), "yes" if i < right else "no")
        for i in range(count)
    ]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50), st.integers(1, 60))
@settings(deadline=None, max_examples=50)
def test_the_smooth_curve_is_the_mean_of_the_last_values(values: list[float], window: int):
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    assert smooth(values, window) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def points(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    lines = [line for line in ElementTree.fromstring(svg).iter("polyline") if line.attrib["class"].startswith(kind)]
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())] for line in lines]


def test_the_curve_has_a_point_for_every_step_and_falls_where_the_loss_falls():
    falling = [4.0, 2.0, 1.0, 0.5]
    svg = loss_svg([Curve("first", falling), Curve("second", [0.5, 1.0])])
    first, second = points(svg, "raw")
    assert [len(first), len(second)] == [4, 2]
    xs, ys = zip(*first, *second, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys[:4]) == sorted(ys[:4])  # y grows downwards
    assert ys[4] > ys[5]
    assert ys[1] - ys[0] == pytest.approx(ys[3] - ys[2], abs=0.2)  # halving is the same drop everywhere: a log scale


def test_a_stage_name_cannot_break_the_picture():
    texts = [text.text for text in ElementTree.fromstring(loss_svg([Curve("<b>&", [2.0, 1.0])])).iter("text")]
    assert "<b>&" in texts


def test_losses_that_are_zero_or_absent_do_not_break_the_picture():
    assert loss_svg([]) == ""
    assert loss_svg([Curve("only", [1.0])]) == ""
    assert ElementTree.fromstring(loss_svg([Curve("a", []), Curve("b", [1.0, 0.0, 1.0])])) is not None


@given(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_shown_answers_do_not_depend_on_what_was_answered(count: int, right_a: int, right_b: int):
    shown = choose_shown(answers("a", 9, right_a) + answers("b", 9, right_b), count)
    same = choose_shown(answers("a", 9, 0) + answers("b", 9, 0), count)
    assert [item.question.where for item in shown] == [item.question.where for item in same]


def test_shown_answers_cover_the_tasks_evenly_and_the_sets_from_end_to_end():
    shown = choose_shown(answers("a", 100, 0) + answers("b", 100, 0) + answers("c", 1, 0), 11)
    tasks = [item.question.task for item in shown]
    assert [tasks.count(task) for task in "abc"] == [4, 4, 1]
    assert [item.question.where for item in shown[:4]] == ["a:0", "a:25", "a:50", "a:75"]


def test_a_picture_is_embedded_as_it_is():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8))
    again = Image.open(io.BytesIO(base64.b64decode(data_uri(picture, height=48).partition(",")[2])))
    assert again.size == (96, 48)
    assert np.array_equal(np.asarray(again)[::2, ::2], np.asarray(picture))


def test_a_question_is_shown_with_its_pictures_and_the_times_of_its_frames(toy_folder: Path, media: Path):
    from eagle_model import Eagle2_5_VLProcessor

    content = [
        {"type": "image", "image": str(media / "wide.jpg")},
        {"type": "video", "video": str(media / "clip.mp4")},
        {"type": "text", "text": "Same?"},
    ]
    question = Question("mixed", "x:1", ({"role": "user", "content": content},), "Same?", "No.")
    shown = show(Answer(question, " Yes. "), Eagle2_5_VLProcessor.from_pretrained(toy_folder))
    captions = [picture["caption"] for picture in shown["pictures"]]
    assert captions[0] == "96 x 32"
    seconds = [float(caption.removesuffix(" s")) for caption in captions[1:]]
    assert len(seconds) == 8
    assert seconds == sorted(seconds)
    assert (shown["answer"], shown["truth"], shown["right"]) == ("Yes.", "No.", False)


VALUES: dict[str, Any] = {
    "name": "a <run>",
    "description": "described & done",
    "seconds": 187.3,
    "peak_rss_gib": 1.234,
    "seed": 41,
    "parameters": 1234567,
    "pretraining": [
        {"name": "tower", "context_length": None, "steps": 7, "tokens": 0, "samples": 77, "loss_first": 2.111, "loss_last": 1.222}
    ],
    "stages": [
        {
            "name": "long",
            "context_length": 768,
            "steps": 19,
            "tokens": 98765,
            "samples": 543,
            "loss_first": 1.333,
            "loss_last": 0.444,
        }
    ],
    "accuracy": {"overall": 0.812, "clip": 0.703},
    "accuracy_noise": {"overall": 0.101, "clip": 0.099},
    "accuracy_majority": {"overall": 0.131, "clip": 0.121},
    "questions": {"overall": 150, "clip": 149},
    "samples": {"read": 4321, "trained": 4300, "rejected": 21, "degraded": 17},
    "rejects": [{"where": "train.jsonl:3", "reason": "the line is not <JSON>"}],
    "questions_rejected": [{"where": "held_out.jsonl:9", "reason": "gone"}],
    "notes": "a note",
}


def written(folder: Path, **changes: Any) -> str:
    shown = [
        {"task": "clip", "pictures": [], "question": "Which?", "answer": "<4>", "truth": "5", "right": False},
    ]
    curves = [Curve("long", [1.0, 0.5])]
    write_report(folder, {**VALUES, **changes}, curves=curves, shown=shown, next_steps=["chat --now"])
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_holds_every_figure_of_the_values(tmp_path: Path):
    page = written(tmp_path)
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.S)
    figures = (
        "a &lt;run&gt;|described &amp; done|3 min 07 s|1.23 GiB|1,234,567|41|81.2 %|70.3 %|10.1 %|9.9 %|13.1 %|12.1 %|150|149"
    )
    figures += "|768|19|98,765|543|2.111|1.222|1.333|0.444|4,321 read|4,300 trained|17 with fewer|21 rejected"
    figures += "|train.jsonl:3|the line is not &lt;JSON&gt;|held_out.jsonl:9|Which?|&lt;4&gt;|truth: 5|chat --now|a note"
    missing = [figure for figure in figures.split("|") if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d|,\d)", text)]
    assert missing == []
    assert json.loads((tmp_path / "report.json").read_text()) == VALUES


def test_the_page_needs_no_network(tmp_path: Path):
    assert not re.search(r"(src|href)=[\"'](?!data:)|@import|url\(", written(tmp_path))


def test_a_run_without_evaluation_has_a_page_too(tmp_path: Path):
    nothing: dict[str, Any] = {"accuracy": {}, "accuracy_noise": {}, "accuracy_majority": {}, "questions": {"overall": 0}}
    page = written(tmp_path, **nothing, rejects=[], questions_rejected=[])
    assert "Accuracy on held-out" not in page
    assert "–" in page
