"""Anchors point at a clip in its video and never give the answer away."""

from __future__ import annotations

import random

import pytest
from eagle_data.curate.anchors import anchored, leaks
from hypothesis import given, settings
from hypothesis import strategies as st

BRIEF = "A cyclist in a red jacket rides down three steps in a park."
WORDS = st.lists(st.sampled_from(["red", "jacket", "dog", "three", "3", "blue", "the", "park", "runs"]), max_size=5).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "leaking"),
    [
        ("Red.", True),
        ("A red jacket", True),
        ("3", True),
        ("Blue.", False),
        ("A red car", False),
        ("Yes.", False),
        ("No", False),
        ("", False),
    ],
)
def test_an_answer_that_stands_in_the_anchor_leaks(answer: str, leaking: bool):
    assert leaks(BRIEF, answer) is leaking


@settings(deadline=None)
@given(WORDS, st.integers(0, 1000))
def test_the_context_is_shown_only_when_it_does_not_leak(answer: str, seed: int):
    text = anchored(
        "What is it?", answer, start=10, end=20, brief=BRIEF, forms=("time", "context", "both"), chance=random.Random(seed)
    )
    assert text.endswith("What is it?")
    assert ("10.0 s" in text and "20.0 s" in text) or BRIEF in text
    if leaks(BRIEF, answer):
        assert BRIEF not in text


def test_the_form_is_drawn_from_those_allowed():
    def forms(*allowed: str) -> set[tuple[bool, bool]]:
        texts = [
            anchored("Q?", "Blue.", start=1, end=2.5, brief=BRIEF, forms=allowed, chance=random.Random(seed))  # pyright: ignore[reportArgumentType]
            for seed in range(50)
        ]
        return {("Between 1.0 s and 2.5 s" in text, BRIEF in text) for text in texts}

    assert forms("time") == {(True, False)}
    assert forms("context") == {(False, True)}
    assert forms("both") == {(True, True)}
    assert len(forms("time", "context", "both")) == 3
