"""A conversation over several turns, and what is left of it when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eagle_data.errors import MediaError
from eagle_serve import Checkpoint, Media, PromptError, Session, Turn, prepare, to_messages
from transformers import LogitsProcessorList


def _roles(session: Session) -> list[str]:
    return [turn.role for turn in session.turns]


def test_pictures_stay_with_their_turn_and_the_next_prompt_holds_everything_before_it(
    checkpoint: Checkpoint, media: Path, picture: Callable[..., Any]
):
    session = Session(checkpoint)
    first = "".join(session.ask("What is this?", images=[media / "wide.png"], videos=[media / "clip.mp4"], max_new_tokens=6))
    assert session.turns[1] == Turn("assistant", first)
    list(session.ask("And this?", images=[picture(40, 30)], max_new_tokens=6))
    assert _roles(session) == ["user", "assistant", "user", "assistant"]
    assert [item.name for item in session.turns[0].media] == ["wide.png", "clip.mp4"]
    assert [item.name for item in session.turns[2].media] == ["image 1"]
    assert session.seen is not None
    assert [item.name for item in session.seen.media] == ["wide.png", "clip.mp4", "image 1"]
    whole = prepare(checkpoint, to_messages(session.turns[:3]))
    assert session.seen.total_tokens == whole.tokens
    prompt = checkpoint.processor.tokenizer.decode(whole.inputs["input_ids"][0])
    assert prompt.index("What is this?") < prompt.index(f"assistant\n{first}<|im_end|>") < prompt.index("And this?")


def test_the_second_answer_depends_on_the_first_picture(checkpoint: Checkpoint, picture: Callable[..., Any]):
    def second(seed: int) -> str:
        session = Session(checkpoint)
        session.turns = [Turn("user", "Look.", (Media("image", picture(64, 64, seed), "p"),)), Turn("assistant", "a word")]
        return "".join(session.ask("What is this?", max_new_tokens=12))

    assert second(1) != second(2)


def test_a_system_prompt_replaces_the_checkpoints_own(checkpoint: Checkpoint):
    own, other = Session(checkpoint), Session(checkpoint, system="Read the digits.")
    for session in (own, other):
        list(session.ask("What?", max_new_tokens=1))
    assert own.seen is not None
    assert other.seen is not None
    assert own.seen.total_tokens != other.seen.total_tokens


def test_a_stopped_answer_is_kept_as_far_as_it_went(checkpoint: Checkpoint, endless: LogitsProcessorList):
    session = Session(checkpoint)
    answer = session.ask("What?", max_new_tokens=500, logits_processor=endless)
    said = next(answer) + next(answer)
    answer.close()
    assert session.turns[-1] == Turn("assistant", said, stopped=True)
    assert "".join(session.ask("And?", max_new_tokens=2))


def test_an_interrupt_inside_the_stream_stops_the_answer_too(checkpoint: Checkpoint, endless: LogitsProcessorList):
    session = Session(checkpoint)
    answer = session.ask("What?", max_new_tokens=500, logits_processor=endless)
    next(answer)
    with pytest.raises(KeyboardInterrupt):
        answer.throw(KeyboardInterrupt)
    assert session.turns[-1].stopped
    assert not session.unanswered


def test_a_failed_question_stays_unanswered_and_can_be_tried_again(checkpoint: Checkpoint):
    session = Session(checkpoint)
    with pytest.raises(ValueError, match="not_an_option"):
        list(session.ask("What?", not_an_option=1))
    assert session.unanswered
    assert "".join(session.answer(max_new_tokens=3))
    assert _roles(session) == ["user", "assistant"]


def test_a_new_question_replaces_one_that_failed(checkpoint: Checkpoint):
    session = Session(checkpoint)
    with pytest.raises(PromptError, match="context length"):
        list(session.ask("word " * 900))
    list(session.ask("What?", max_new_tokens=2))
    assert [turn.text for turn in session.turns if turn.role == "user"] == ["What?"]


def test_a_refused_question_leaves_the_conversation_alone(checkpoint: Checkpoint, media: Path):
    session = Session(checkpoint)
    list(session.ask("What?", max_new_tokens=2))
    before = list(session.turns)
    with pytest.raises(PromptError):
        session.add("<image-1>")
    with pytest.raises(MediaError, match=r"cut\.png"):
        session.ask("This?", images=[media / "cut.png"])
    assert session.turns == before


def test_regenerating_greedily_gives_the_same_answer_and_no_more_turns(checkpoint: Checkpoint):
    session = Session(checkpoint)
    first = "".join(session.ask("What?", max_new_tokens=8))
    session.retract_answer()
    assert "".join(session.answer(max_new_tokens=8)) == first
    assert len(session.turns) == 2


def test_clearing_forgets_what_was_said_and_seen(checkpoint: Checkpoint):
    session = Session(checkpoint)
    list(session.ask("What?", max_new_tokens=2))
    session.clear()
    assert session.turns == []
    assert session.seen is None
    with pytest.raises(PromptError, match="no unanswered question"):
        next(session.answer())


@pytest.mark.parametrize("source", ["path", "bytes", "picture"])
def test_an_image_may_come_as_a_path_as_bytes_or_as_a_picture(checkpoint: Checkpoint, media: Path, source: str):
    from PIL import Image

    path = media / "wide.png"
    given: Any = {"path": str(path), "bytes": path.read_bytes(), "picture": Image.open(path)}[source]
    session = Session(checkpoint)
    answer = "".join(session.ask("What?", images=[given], max_new_tokens=8))
    by_path = Session(checkpoint)
    assert answer == "".join(by_path.ask("What?", images=[path], max_new_tokens=8))
