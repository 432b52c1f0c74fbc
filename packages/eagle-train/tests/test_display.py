"""What is printed where there is no terminal: plain lines, one at a time, no matter what names hold."""

from __future__ import annotations

import io

import pytest
from eagle_train import display
from eagle_train.display import Display, duration
from rich.console import Console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (187.3, "3 min 07 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min")],
)
def test_durations_read_well(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_phase_off_a_terminal_prints_plain_lines_now_and_then_and_one_at_its_end(monkeypatch: pytest.MonkeyPatch):
    output = io.StringIO()
    monkeypatch.setattr(display, "LINE_EVERY", 0.0)
    with Display(Console(file=output, width=20)).phase("stage [a] of many words", 3) as bar:
        bar.update(1, "loss 1.0 " * 10)
    first, last = output.getvalue().splitlines()
    assert first.startswith("  stage [a] of many words: 1/3  loss 1.0")
    assert last.startswith("✓ stage [a] of many words")
    assert "\x1b" not in output.getvalue()
    assert "\r" not in output.getvalue()


def test_a_phase_whose_total_is_not_known_shows_what_is_done_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(display, "LINE_EVERY", 0.0)
    for terminal in (False, True):
        output = io.StringIO()
        with Display(Console(file=output, width=80, force_terminal=terminal)).phase("preparation", None) as bar:
            bar.update(300, "web")
            bar.update(301, "web")
        assert ("301/?" if terminal else "preparation: 301  web") in output.getvalue()


def test_a_phase_that_fails_is_not_ticked_off():
    output = io.StringIO()
    with pytest.raises(KeyError), Display(Console(file=output)).phase("broken", 1):
        raise KeyError
    assert "✓" not in output.getvalue()


def test_on_a_terminal_the_bar_is_cleared_and_the_tick_stays():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with Display(console).phase("stage [a]", 2) as bar:
        bar.update(2, "[loss] 1.0")
    assert output.getvalue().rstrip().splitlines()[-1].count("stage [a]") == 1
    assert "✓" in output.getvalue()
