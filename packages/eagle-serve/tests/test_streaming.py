"""Streaming: the same text as generate, errors of the other thread, and stopping."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch
from eagle_serve import Checkpoint, PromptError, prepare, stream, stream_prompt
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

PICTURE = Image.effect_mandelbrot((64, 32), (-2, -1, 1, 1), 50).convert("RGB")
CONTENT = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]
MESSAGES: list[Any] = [{"role": "user", "content": CONTENT}]


class _Steps(StoppingCriteria):
    """Counts the tokens of a generation without ever stopping it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.count += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "eagle-serve-generate"]


def test_the_pieces_together_are_what_generate_says(checkpoint: Checkpoint):
    prompt = prepare(checkpoint, MESSAGES)
    context_token = [checkpoint.processor.image_token_id]
    tokens = checkpoint.model.generate(**prompt.inputs, max_new_tokens=24, do_sample=False, suppress_tokens=context_token)
    whole = checkpoint.processor.tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert "".join(stream(checkpoint, MESSAGES, max_new_tokens=24)) == whole
    assert whole


def test_text_without_spaces_arrives_token_by_token_and_no_character_is_split(checkpoint: Checkpoint):
    text = "12345\nné日本🦅語\n\n6"
    ids = checkpoint.processor.tokenizer.encode(text)

    class Recites(LogitsProcessor):
        def __init__(self) -> None:
            self.ids = iter(ids)

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            scores = torch.full_like(scores, float("-inf"))
            scores[:, next(self.ids)] = 0
            return scores

    pieces = list(stream(checkpoint, MESSAGES, max_new_tokens=len(ids), logits_processor=LogitsProcessorList([Recites()])))
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert pieces[:6] == ["1", "2", "3", "4", "5", "\n"]
    assert len(ids) > len(pieces) > 12


def test_the_model_cannot_say_the_token_that_stands_for_a_picture(checkpoint: Checkpoint):
    class Favours(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            scores = scores.clone()
            scores[:, checkpoint.processor.image_token_id] += 1000
            return scores

    # It runs after the suppression, whose minus infinity no favour lifts; without one the token would win every time.
    assert list(stream(checkpoint, MESSAGES, max_new_tokens=6, logits_processor=LogitsProcessorList([Favours()])))


def test_text_arrives_in_pieces_while_the_model_still_works(checkpoint: Checkpoint, endless: LogitsProcessorList):
    pieces = stream(checkpoint, MESSAGES, max_new_tokens=300, logits_processor=endless)
    assert next(pieces).strip() in ("", "a")
    assert checkpoint.busy.locked()
    assert "".join(pieces).count("a") >= 298


def test_an_exception_of_the_generation_thread_reaches_the_caller(checkpoint: Checkpoint):
    with pytest.raises(ValueError, match="not_an_option"):
        list(stream(checkpoint, MESSAGES, max_new_tokens=4, not_an_option=1))
    assert not checkpoint.busy.locked()
    assert _threads() == []


def test_an_exception_halfway_comes_after_the_text_before_it(checkpoint: Checkpoint, endless: LogitsProcessorList):
    class Breaks(StoppingCriteria):
        steps = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.steps += 1
            if self.steps == 5:
                raise RuntimeError("out of memory, says the test")
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    said: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        said.extend(stream(checkpoint, MESSAGES, logits_processor=endless, stopping_criteria=[Breaks()]))
    assert said


def test_closing_the_stream_stops_the_model(checkpoint: Checkpoint, endless: LogitsProcessorList):
    steps = _Steps()
    pieces = stream(checkpoint, MESSAGES, max_new_tokens=500, logits_processor=endless, stopping_criteria=[steps])
    next(pieces)
    [thread] = _threads()
    pieces.close()
    thread.join(20)
    assert not thread.is_alive()
    assert 0 < steps.count < 400
    assert not checkpoint.busy.locked()


def test_answers_on_one_checkpoint_follow_one_another(checkpoint: Checkpoint, endless: LogitsProcessorList):
    first = stream(checkpoint, MESSAGES, max_new_tokens=400, logits_processor=endless)
    next(first)
    second = stream(checkpoint, MESSAGES, max_new_tokens=2, logits_processor=endless)
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append("".join(second)))
    waiting.start()
    first.close()
    waiting.join(20)
    assert [answer.count("a") for answer in answers] == [2]


def test_an_interrupt_ends_the_wait_for_a_busy_model_and_leaves_no_thread(checkpoint: Checkpoint):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with checkpoint.busy:
            pieces = stream(checkpoint, MESSAGES, max_new_tokens=2)
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                next(pieces)
            timer.join()
            for thread in _threads():
                thread.join(10)
            assert _threads() == []
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_answer_never_passes_the_context_length(checkpoint: Checkpoint, endless: LogitsProcessorList):
    prompt = prepare(checkpoint, [{"role": "user", "content": [{"type": "text", "text": "word " * 500}]}])
    room = checkpoint.context_length - prompt.tokens
    assert 0 < room < 200
    answer = "".join(stream_prompt(checkpoint, prompt, max_new_tokens=5000, logits_processor=endless))
    assert answer.count("a") == room


def test_temperature_zero_repeats_itself_and_sampling_does_not(checkpoint: Checkpoint):
    def say(temperature: float) -> str:
        return "".join(stream(checkpoint, MESSAGES, max_new_tokens=24, temperature=temperature))

    assert say(0.0) == say(0.0)
    assert len({say(1.5) for _ in range(4)}) > 1


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused_before_anything_runs(checkpoint: Checkpoint, options: dict[str, Any]):
    with pytest.raises(PromptError):
        stream(checkpoint, MESSAGES, **options)
