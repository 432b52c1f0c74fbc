"""Paths in reports: relative to the run folder in whatever form they come, and nothing else touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from eagle_train.shown_paths import relative_to_run
from hypothesis import given, settings
from hypothesis import strategies as st

RUN = Path("/home/me/runs/a run")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/runs/a run/corpus/clip.jsonl:3", "corpus/clip.jsonl:3"),
        ("/home/me/data/x.jsonl:3", "../../data/x.jsonl:3"),
        ("/home/me/my data/x y.jsonl:3", "../../my data/x y.jsonl:3"),
        ("'/srv/a.png': damaged. Check it.", "'../../../../srv/a.png': damaged. Check it."),
        ("file:///srv/a.png is gone", "../../../../srv/a.png is gone"),
        ("https://host/a/b.png is gone", "https://host/a/b.png is gone"),
        ("write <image>/<video> and/or 3 / 4 tokens", "write <image>/<video> and/or 3 / 4 tokens"),
        ("media/a.png", "media/a.png"),
    ],
)
def test_absolute_paths_become_relative_and_other_text_stays(text: str, shown: str):
    assert relative_to_run(text, RUN) == shown


def test_a_run_folder_given_relative_is_taken_off_too():
    assert relative_to_run("runs/q/corpus/a.jsonl:1: runs/q/b", Path("runs/q")) == "corpus/a.jsonl:1: b"
    assert relative_to_run("other-runs/q/a", Path("runs/q")) == "other-runs/q/a"


@given(st.lists(st.text("abc .-_é", min_size=1).filter(lambda part: part.strip(". ") == part), min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_the_relative_path_leads_to_the_same_file(parts: list[str]):
    path = "/" + "/".join(parts)
    shown = relative_to_run(path, RUN)
    assert not shown.startswith("/")
    assert os.path.normpath(RUN / shown) == os.path.normpath(path)
