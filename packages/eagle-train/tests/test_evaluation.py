"""Evaluation: what counts as right, what guessing reaches, what noise replaces, and questions that cannot be asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.lmdb_store import write_lmdb
from eagle_train.evaluation import (
    Answer,
    Media,
    Question,
    accuracy,
    answer,
    majority,
    prompt_inputs,
    read_media,
    read_questions,
)
from PIL import Image


@pytest.fixture(scope="module")
def processor(toy_folder: Path) -> Any:
    from eagle_model import Eagle2_5_VLProcessor

    return Eagle2_5_VLProcessor.from_pretrained(toy_folder)


def question(task: str, truth: str) -> Question:
    return Question(task, f"{task}.jsonl:1", (), "?", truth)


@pytest.mark.parametrize(
    ("said", "right"), [("42", True), (" 42\n", True), ("42.", False), ("4 2", False), ("", False), ("forty-two", False)]
)
def test_an_answer_is_right_when_it_is_the_truth_but_for_outer_white_space(said: str, right: bool):
    assert Answer(question("a", "42 "), said).right is right


def test_the_overall_rate_is_over_questions_and_not_over_tasks():
    answers = [Answer(question("a", "1"), "1")] * 3 + [Answer(question("b", "1"), "2")]
    assert accuracy(answers) == {"overall": 0.75, "a": 1.0, "b": 0.0}
    assert accuracy([]) == {}


def test_the_majority_answer_is_chosen_for_each_task():
    questions = [question("a", "1")] * 3 + [question("a", "2")] + [question("b", "2")] * 2 + [question("b", "3")] * 2
    assert majority(questions) == {"overall": 0.625, "a": 0.75, "b": 0.5}
    assert majority([]) == {"overall": 0.0}


def test_a_question_is_the_conversation_up_to_its_first_answer(write_lines: Callable[..., Path], media: Path, processor: Any):
    turns = [("system", "Be brief."), ("human", "<image-1> Colour?"), ("gpt", "Red."), ("human", "Sure?"), ("gpt", "Yes.")]
    record = {"image": "red.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    questions, rejects = read_questions({"t": write_lines([record])}, media)
    assert rejects == []
    assert [(q.task, q.text, q.truth) for q in questions] == [("t", "Colour?", "Red.")]
    assert [message["role"] for message in questions[0].messages] == ["system", "user"]
    prompt = processor.tokenizer.decode(
        prompt_inputs(processor, [(questions[0], read_media(processor, questions[0]))])["input_ids"][0]
    )
    assert "Be brief." in prompt
    assert "Red." not in prompt
    assert prompt.endswith("<|im_start|>assistant\n")


def test_an_answer_of_weight_0_is_part_of_the_question(write_lines: Callable[..., Path], media: Path):
    turns = [("human", "<image-1> Colour?"), ("gpt", "Blue."), ("human", "Sure?"), ("gpt", "Red.")]
    talks = []
    for weights in ((0, 1), (0, 0)):
        answers = iter(weights)
        talks.append([{"from": who, "value": text} | ({"weight": next(answers)} if who == "gpt" else {}) for who, text in turns])
    lines = [{"image": "red.png", "conversations": talk} for talk in talks]
    questions, rejects = read_questions({"t": write_lines(lines)}, media)
    assert [(q.text, q.truth) for q in questions] == [("Colour? Sure?", "Red.")]
    assert [message["role"] for message in questions[0].messages] == ["user", "assistant", "user"]
    assert [reject.kind for reject in rejects] == ["nothing learned"]


def test_clips_and_lmdb_pictures_are_read_as_the_line_says(
    write_lines: Callable[..., Path], media: Path, processor: Any, talk: Any
):
    write_lmdb(media / "store.lmdb", [("7", (media / "red.png").read_bytes())])
    lines = [
        talk("<image>\nColour?", image={"lmdb_file": "store.lmdb", "lmdb_key": "7"}),
        talk("<video>\nWhat?", video={"video": "clip.mp4", "start_time": 1, "end_time": 3}),
    ]
    questions, _ = read_questions({"t": write_lines(lines)}, media)
    picture, clip = (read_media(processor, q) for q in questions)
    assert picture.images[0].getpixel((5, 5)) == (255, 0, 0)
    assert clip.images == ()
    assert min(clip.timestamps[0]) >= 1
    assert max(clip.timestamps[0]) < 3


def test_noise_changes_the_pixels_and_nothing_else(media: Path, write_lines: Callable[..., Path], processor: Any, talk: Any):
    lines = [talk("<image-1><video-1>Same?", image="wide.jpg", video="clip.mp4")]
    questions, _ = read_questions({"t": write_lines(lines)}, media)
    seen = read_media(processor, questions[0])
    noise = seen.as_noise(np.random.default_rng(1))
    inputs, noisy = (prompt_inputs(processor, [(questions[0], m)]) for m in (seen, noise))
    assert inputs.keys() == noisy.keys()
    for name in inputs.keys() - {"pixel_values"}:
        assert np.array_equal(inputs[name], noisy[name]), name
    assert inputs["pixel_values"].shape == noisy["pixel_values"].shape
    assert abs(np.corrcoef(inputs["pixel_values"].flatten(), noisy["pixel_values"].flatten())[0, 1]) < 0.05


def test_noise_is_uniform_and_follows_its_seed():
    media = Media((Image.new("RGB", (200, 100)),), (), (), ())
    first, again, other = (np.asarray(media.as_noise(np.random.default_rng(seed)).images[0]) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (100, 200, 3)
    assert first.mean() == pytest.approx(127.5, abs=2)


def test_questions_that_cannot_be_asked_are_rejected_and_the_others_answered_in_order(
    media: Path, write_lines: Callable[..., Path], processor: Any, load_toy: Callable[[], Any], talk: Any
):
    (media / "broken.jpg").write_bytes((media / "wide.jpg").read_bytes()[:200])
    lines = [
        talk("<image>\nA?", image="red.png"),
        talk("<image>\nB?", image="gone.png"),
        "not json",
        talk("<video>\nC?", video="clip.mp4"),
        talk("<image>\nD?", image="broken.jpg"),
        talk("E?"),
    ]
    questions, rejects = read_questions({"t": write_lines(lines)}, media)
    done: list[int] = []
    model = load_toy().eval()
    answers, unreadable = answer(model, processor, questions, max_new_tokens=2, batch=2, progress=done.append)
    assert [item.question.text for item in answers] == ["A?", "C?", "E?"]
    assert [reject.where.rpartition(":")[2] for reject in rejects] == ["3"]
    assert [(reject.where.rpartition(":")[2], reject.kind) for reject in unreadable] == [
        ("2", "missing media"),
        ("5", "unreadable media"),
    ]
    assert done == [2, 4, 5]


def test_answers_do_not_depend_on_the_batch_they_are_in(
    media: Path, write_lines: Callable[..., Path], processor: Any, load_toy: Callable[[], Any], talk: Any
):
    lines = [talk("<image>\nColour?", image="red.png"), talk("Say something long, please, and mean it."), talk("A?")]
    questions, _ = read_questions({"t": write_lines(lines)}, media)
    model = load_toy().eval()
    texts = [[item.text for item in answer(model, processor, questions, max_new_tokens=6, batch=b)[0]] for b in (1, 3)]
    assert texts[0] == texts[1]
