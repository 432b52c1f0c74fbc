"""The command line in process: answers on stdout, everything else on stderr, exit code 2 for what cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from eagle_serve import Checkpoint, Session
from eagle_serve.cli import app
from typer.testing import CliRunner, Result


@pytest.fixture
def chat(checkpoint_folder: Path):
    def run(*arguments: object, input: str | None = None) -> Result:
        return CliRunner().invoke(app, ["chat", "--model", str(checkpoint_folder), *map(str, arguments)], input=input)

    return run


def test_the_answer_streams_to_stdout_and_nothing_else_is_said(chat, checkpoint: Checkpoint, media: Path):
    images, video = [media / "wide.png", media / "small.jpg"], media / "clip.mp4"
    expected = "".join(Session(checkpoint).ask("What?", images=images, videos=[video], max_new_tokens=9))
    result = chat("--image", images[0], "-i", images[1], "--video", video, "--max-new-tokens", 9, "What?")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected + "\n"
    assert result.stderr == ""


def test_what_was_seen_is_reported_on_stderr(chat, media: Path):
    result = chat(
        *("-i", media / "wide.png", "-v", media / "clip.mp4", "--max-new-tokens", 2),
        *("--max-tiles", 2, "--fps", 4, "--max-frames", 8, "--show-seen", "What?"),
    )
    assert result.exit_code == 0
    first, second, tokens = result.stderr.strip().splitlines()
    assert first == "1. wide.png: 96 × 32 pixels, 2 × 1 tiles + thumbnail, 12 tokens"
    assert second.startswith("2. clip.mp4: 64 × 48 pixels, 8 frames at 2.67 fps")
    assert "44 visual" in tokens
    assert "of 640 in the context" in tokens


def test_without_a_question_it_converses_over_several_turns(chat, checkpoint: Checkpoint, media: Path):
    session = Session(checkpoint)
    first = "".join(session.ask("What?", images=[media / "wide.png"], max_new_tokens=5))
    second = "".join(session.ask("And now?", videos=[media / "clip.mp4"], max_new_tokens=5))
    lines = [f"/image '{media / 'wide.png'}'", "What?", f"/video {media / 'clip.mp4'}", "And now?", "/quit", "never asked"]
    result = chat("--max-new-tokens", 5, input="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{first}\n{second}\n"
    assert result.stderr == "attached wide.png\nattached clip.mp4\n"


def test_a_mistake_does_not_end_the_conversation(chat, media: Path):
    lines = ["/image /none.png", f"/image {media / 'cut.png'}", "/dance", "<image-1>", "word " * 900, "What?"]
    result = chat("--max-new-tokens", 3, input="\n".join(lines))
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 5
    for error, word in zip(errors, ("no such file", "cut.png", "'/dance'", "'<image-1>'", "context length is 640"), strict=True):
        assert word in error


def test_clear_starts_over(chat, checkpoint: Checkpoint, media: Path):
    alone = "".join(Session(checkpoint).ask("What?", max_new_tokens=5))
    result = chat("--max-new-tokens", 5, "-i", media / "wide.png", input="Look.\n/clear\nWhat?\n")
    assert result.stdout.endswith(f"\n{alone}\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--image", "/none.png"], "/none.png: no such file"),
        (["--video", "/none.mp4"], "/none.mp4: no such file"),
        (["--image", "cut.png"], "cut.png"),
        (["--video", "cut.mp4"], "cut.mp4"),
        (["--image", "clip.mp4"], "clip.mp4"),
        (["--system", "<img>"], "system prompt contains"),
    ],
)
def test_bad_media_and_text_are_one_line_on_stderr_and_exit_code_two(
    chat, media: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
):
    monkeypatch.chdir(media)
    result = chat(*arguments, "What?")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("command", [["chat"], ["demo"]])
def test_a_wrong_model_folder_is_exit_code_two_for_chat_and_demo(tmp_path: Path, command: list[str]):
    question = ["hi"] if command == ["chat"] else []
    for model in (tmp_path / "none", tmp_path):
        result = CliRunner().invoke(app, [*command, "--model", str(model), *question])
        assert result.exit_code == 2
        assert str(model) in result.stderr


def test_a_prompt_too_long_is_exit_code_two_with_the_counts(chat):
    result = chat("word " * 900)
    assert result.exit_code == 2
    assert "context length is 640" in result.stderr


def test_importing_the_package_and_its_help_does_not_import_torch_or_streamlit():
    code = (
        "import sys, eagle_serve, eagle_serve.cli\n"
        "from typer.testing import CliRunner\n"
        "for command in ('chat', 'demo'):\n"
        "    assert CliRunner().invoke(eagle_serve.cli.app, [command, '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'streamlit', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert eagle_serve.Session.__name__ == 'Session' and 'torch' in sys.modules\n"
        "assert all(hasattr(eagle_serve, name) for name in eagle_serve.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
