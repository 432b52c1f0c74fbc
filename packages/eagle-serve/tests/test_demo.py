"""The page, driven as a browser would drive it, on a real checkpoint; and the server that the command starts."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import eagle_serve
import pytest
from eagle_serve import Checkpoint, Session, Turn, VisualSettings, media_from_file, prepare, to_messages
from eagle_serve.demo_examples import quickstart_examples
from eagle_serve.demo_server import MODEL_VARIABLE, demo_command, demo_environment, port_is_free
from streamlit.testing.v1 import AppTest

APP = Path(eagle_serve.__file__).with_name("demo_app.py")


@pytest.fixture
def page(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """The page after its first run, with answers of 6 tokens."""
    monkeypatch.setenv(MODEL_VARIABLE, str(checkpoint_folder))
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    at.slider(key="max_new_tokens").set_value(6)
    return at


def _ask(page: AppTest, text: str, *files: Path) -> AppTest:
    field = page.chat_input[0]
    field.set_value(text)
    for file in files:
        field.upload(file.name, file.read_bytes())
    page.run()
    assert not page.exception
    return page


def _panel(page: AppTest) -> str:
    [panel] = [html.proto.body for html in page.get("html") if 'class="seen"' in html.proto.body]
    return panel


def _texts(page: AppTest) -> list[tuple[str, str]]:
    """Role and text of every message on the page."""
    return [(message.name, "".join(block.value for block in message.markdown)) for message in page.chat_message]


def test_pictures_and_a_video_are_answered_and_what_was_seen_is_shown(page: AppTest, checkpoint: Checkpoint, media: Path):
    _ask(page, "What is this?", media / "wide.png", media / "small.jpg", media / "clip.mp4")
    expected = Session(checkpoint, visual=VisualSettings(max_tiles=6, fps=2.0, max_frames=96))
    sources = {"images": [media / "wide.png", media / "small.jpg"], "videos": [media / "clip.mp4"]}
    answer = "".join(expected.ask("What is this?", **sources, max_new_tokens=6))
    assert _texts(page) == [("user", "What is this?"), ("assistant", answer)]
    assert expected.seen is not None
    assert page.expander[0].label == f"What the model saw · {expected.seen.total_tokens:,} tokens"
    panel = _panel(page)
    for text in ("wide.png", "3 × 1 tiles", "thumbnail", "clip.mp4", "0.50 s", f"{expected.seen.visual_tokens} visual"):
        assert text in panel
    assert not page.error


def test_pictures_stay_with_their_turn_and_an_upload_is_used_once(page: AppTest, media: Path):
    _ask(page, "What is this?", media / "wide.png")
    _ask(page, "Sure?")
    session: Session = page.session_state["session"]
    assert [len(turn.media) for turn in session.turns] == [1, 0, 0, 0]
    assert session.seen is not None
    assert [item.name for item in session.seen.media] == ["wide.png"]
    assert len(page.chat_message) == 4
    assert [len(message.get("image")) for message in page.chat_message] == [1, 0, 0, 0]


def test_a_rerun_without_a_question_asks_nothing_again(page: AppTest):
    _ask(page, "What is this?")
    before = list(page.session_state["session"].turns)
    page.slider(key="temperature").set_value(0.5).run()
    assert page.session_state["session"].turns == before


def test_an_animated_gif_goes_in_as_a_video(page: AppTest, media: Path):
    _ask(page, "What?", media / "loop.gif")
    assert page.session_state["session"].turns[0].media[0].kind == "video"
    assert "frames" in _panel(page)


def test_regenerate_gives_another_answer_to_the_same_question(page: AppTest):
    _ask(page, "What is this?")
    greedy = page.session_state["session"].turns[1].text
    page.slider(key="max_new_tokens").set_value(12)
    page.button(key="regenerate").click().run()
    turns = page.session_state["session"].turns
    assert len(turns) == 2
    assert turns[1].text != greedy
    assert turns[1].text.startswith(greedy[:2])


def test_new_conversation_empties_the_page(page: AppTest, media: Path):
    _ask(page, "What is this?", media / "wide.png")
    page.button(key="clear").click().run()
    assert len(page.chat_message) == 0
    assert page.session_state["session"].seen is None


def test_settings_reach_the_prompt(page: AppTest, media: Path):
    page.slider(key="max_tiles").set_value(2)
    page.slider(key="fps").set_value(4.0)
    page.slider(key="max_frames").set_value(8)
    page.text_area(key="system").set_value("Read the digits.")
    _ask(page, "What?", media / "wide.png", media / "clip.mp4")
    wide, clip = page.session_state["session"].seen.media
    assert wide.grid == (2, 1)
    assert len(clip.frames) == 8
    assert page.session_state["session"].system == "Read the digits."


def test_a_damaged_upload_is_a_readable_message_and_nothing_is_sent(page: AppTest, media: Path):
    _ask(page, "What is on it?", media / "wide.png", media / "cut.mp4")
    assert len(page.error) == 1
    assert page.error[0].value.startswith("Not sent. cut.mp4: ")
    assert "What is on it?" in page.error[0].value
    assert len(page.chat_message) == 0
    _ask(page, "Then this.", media / "wide.png")
    assert not page.error
    assert len(page.chat_message) == 2


def test_a_prompt_too_long_can_be_taken_back_or_tried_again_with_other_settings(
    page: AppTest, checkpoint: Checkpoint, media: Path
):
    session: Session = page.session_state["session"]
    image = (media_from_file(media / "wide.png"),)
    words = checkpoint.context_length - prepare(checkpoint, to_messages([Turn("user", "", image)])).tokens
    _ask(page, "word " * (words + 4), media / "wide.png")
    assert "context length is 640" in page.error[0].value
    page.slider(key="max_tiles").set_value(1)
    page.button(key="retry").click().run()
    assert not page.error
    assert not session.unanswered

    page.button(key="clear").click().run()
    _ask(page, "word " * 900)
    assert page.error
    assert [role for role, _ in _texts(page)] == ["user"]
    page.button(key="take_back").click().run()
    assert not page.error
    assert page.session_state["session"].turns == []


def test_without_a_model_or_with_a_wrong_one_the_page_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    assert "--model" in AppTest.from_file(str(APP), default_timeout=60).run().error[0].value
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "none"))
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    assert "no such folder" in at.error[0].value
    assert not at.exception


@pytest.fixture
def run_folder(checkpoint_folder: Path, media: Path, tmp_path: Path) -> Path:
    """A run as the quick start leaves it: a checkpoint with a corpus beside it. Returns the checkpoint's folder."""
    held_out = tmp_path / "corpus" / "held_out"
    shutil.copytree(checkpoint_folder, tmp_path / "checkpoint-final")
    shutil.copytree(media, tmp_path / "corpus" / "media")
    held_out.mkdir()

    def talk(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    digit = {"image": "wide.png", "conversations": talk("<image>\nWhich digit?", "7")}
    clip = {"data": [{"type": "video", "video_list": [{"video": "clip.mp4"}]}], "conversations": talk("<video-1>When?", "3")}
    (held_out / "digit.jsonl").write_text("not json\n" + json.dumps(digit) + "\n")
    (held_out / "clip.jsonl").write_text(json.dumps(clip) + "\n")
    (held_out / "broken.jsonl").write_text("{\n")
    return tmp_path / "checkpoint-final"


def test_the_quick_starts_checkpoint_comes_with_held_out_questions_to_try(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    clip, digit = quickstart_examples(run_folder)
    assert (clip.question, clip.truth, clip.media[0].kind) == ("When?", "3", "video")
    assert (digit.question, digit.truth, digit.media[0].kind) == ("Which digit?", "7", "image")
    monkeypatch.setenv(MODEL_VARIABLE, str(run_folder))
    page = AppTest.from_file(str(APP), default_timeout=60).run()
    page.slider(key="max_new_tokens").set_value(4)
    page.button(key="example-1").click().run()
    assert _texts(page)[0][1] == "Which digit?"
    assert page.session_state["session"].seen.visual_tokens == 16
    assert not page.exception


def test_another_checkpoint_has_no_examples(page: AppTest, checkpoint_folder: Path):
    assert quickstart_examples(checkpoint_folder) == ()
    assert [button.key for button in page.button] == ["clear"]


def test_the_command_serves_the_page_on_its_port_only(checkpoint_folder: Path, free_port: Callable[[], int]):
    port = free_port()
    assert port_is_free("127.0.0.1", port)
    environment = {**os.environ, **demo_environment(str(checkpoint_folder), "cpu")}
    command = demo_command("127.0.0.1", port)
    assert command[0] == sys.executable
    # With fast reruns the run after a press of Stop overlaps the one that streams, and asks the question again.
    assert command[command.index("--runner.fastReruns") + 1] == "false"
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        health = _wait_for(f"http://127.0.0.1:{port}/_stcore/health", server)
        assert health == "ok"
        assert not port_is_free("127.0.0.1", port)
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=20)
    assert f"http://127.0.0.1:{port}" in output


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


def _wait_for(url: str, server: Any) -> str:
    until = time.monotonic() + 40
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer; the server's exit code is {server.poll()}")
