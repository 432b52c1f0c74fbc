"""Prompts byte for byte in both dialects (upstream appendix A.1), and what of them is learned."""

from __future__ import annotations

import pytest
from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, TRAINING, get_dialect, ordinal
from eagle_data.samples import Message
from eagle_data.sampling import training_policy, uniform

CTX = "<IMG_CONTEXT>"


def prompt(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def rendered(text: str, answer: str, media, default_system: str = RELEASED.default_system) -> str:
    messages = (Message("user", text), Message("assistant", answer))
    return prompt(render(messages, default_system=default_system, media=media))


def test_the_released_prompt_of_one_picture():
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<image 1><img>{CTX * 3328}</img>Describe it.<|im_end|>\n"
        "<|im_start|>assistant\nA house.<|im_end|>\n"
    )
    assert rendered("<image-1>Describe it.", "A house.", lambda kind, k: RELEASED.image(k, 3328, 1)) == expected


def test_the_released_prompt_of_two_pictures():
    sizes = {1: 256, 2: 2304}
    expected = f"<image 1><img>{CTX * 256}</img><image 2><img>{CTX * 2304}</img>Compare."
    assert expected in rendered("<image-1><image-2>Compare.", "ok", lambda kind, k: RELEASED.image(k, sizes[k], 2))


def test_the_released_prompt_of_a_video():
    choice = uniform(300, 30.0, 20)
    text = RELEASED.video(1, choice.fps, choice.timestamps, [256] * 20, 10.0)
    block = f"<img>{CTX * 256}</img>"
    start = f"The first video sampled with 2.00 fps: Frame 1 sample at 0.00s: {block}Frame 2 sample at 0.53s: {block}"
    assert text.startswith(start + f"Frame 3 sample at 1.03s: {block}")
    assert text.endswith(f"Frame 20 sample at 9.97s: {block}")


def test_the_released_prompt_of_a_video_of_unknown_rate():
    assert RELEASED.video(1, None, None, [1, 1]) == f"The first video: Frame 1: <img>{CTX}</img>Frame 2: <img>{CTX}</img>"


def test_the_training_prompt_of_a_video():
    choice = training_policy(300, 30.0, fps=4, min_frames=8, max_frames=24)
    text = TRAINING.video(1, choice.fps, choice.timestamps, [256] * len(choice), 10.0)
    block = f"<img>{CTX * 256}</img>"
    frames = "".join(f"Frame {i}: {block}" for i in range(1, 25))
    assert text == f"The first video of 10.00 seconds at 2.40 fps: {frames}\n"


def test_the_training_prompt_of_one_and_of_two_pictures():
    assert TRAINING.image(1, 2, 1) == f"<img>{CTX * 2}</img>\n"
    two = TRAINING.image(1, 1, 2) + TRAINING.image(2, 1, 2)
    assert two == f"<image 1><img>{CTX}</img>\n<image 2><img>{CTX}</img>\n"


def test_the_training_dialect_has_its_own_system_text():
    text = rendered("Hi", "Ho", None, TRAINING.default_system)
    assert text.startswith("<|im_start|>system\nYou are an AI assistant whose name is Eagle-Next.<|im_end|>\n")


def test_a_given_system_turn_replaces_the_default():
    messages = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho"))
    text = prompt(render(messages, default_system="X", media=lambda kind, k: ""))
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    )


def test_only_answers_and_their_end_are_supervised():
    messages = (Message("user", "<image-1>Q"), Message("assistant", "A"), Message("observation", "O"), Message("assistant", "B"))
    segments = render(messages, default_system="S", media=lambda kind, k: "<img></img>")
    assert [segment.text for segment in segments if segment.supervised] == ["A", "<|im_end|>", "B", "<|im_end|>"]


@pytest.mark.parametrize(
    ("k", "word"), [(1, "first"), (10, "tenth"), (11, "11th"), (12, "12th"), (21, "21st"), (22, "22nd"), (113, "113th")]
)
def test_videos_are_counted_in_words_up_to_ten_and_in_figures_beyond(k: int, word: str):
    assert ordinal(k) == word
    assert RELEASED.video(k, 2.0, [0.0], [0]).startswith(f"The {word} video sampled")


def test_timestamps_must_match_the_frames():
    with pytest.raises(ValueError, match="2 frames but 1 timestamps"):
        RELEASED.video(1, 2.0, [0.0], [1, 1])


def test_an_unknown_dialect_lists_the_known_ones():
    with pytest.raises(ValueError, match="released, training"):
        get_dialect("realeased")
