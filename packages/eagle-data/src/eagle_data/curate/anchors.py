"""Questions about a clip lifted to its whole video: anchors that say which moment is meant (section 4.2, step 3b of the paper).

A time anchor writes the interval into the question, a context anchor the clip's brief caption; the form is drawn. An anchor
that gives the answer away is never used. Pure text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from eagle_data.curate.recipe import AnchorForm

__all__ = ["anchored", "leaks"]

_WORD = re.compile(r"[^\W_]+")
_EMPTY = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "has",
        "have",
        "in",
        "is",
        "it",
        "its",
        "of",
        "on",
        "or",
        "that",
        "the",
        "their",
        "there",
        "they",
        "this",
        "to",
        "was",
        "were",
        "with",
    ]
)
_VERDICTS = frozenset(("yes", "no", "not", "true", "false"))
_NUMBERS = {
    word: str(n) for n, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}


def leaks(anchor: str, answer: str) -> bool:
    """Whether every word of the answer that says something stands in the anchor. A yes or no alone is never given away."""
    words = _words(answer) - _VERDICTS
    return bool(words) and words <= _words(anchor)


def anchored(
    question: str, answer: str, *, start: float, end: float, brief: str, forms: Sequence[AnchorForm], chance: random.Random
) -> str:
    """The question about ``start <= t < end`` (seconds) as a question about the whole video.

    Draws one of `forms`; a context (`brief`) that gives the answer away is replaced by the time.
    """
    form = chance.choice(forms)
    if form != "time" and leaks(brief, answer):
        form = "time"
    when = f"Between {start:.1f} s and {end:.1f} s of the video"
    if form == "time":
        return f"{when}: {question}"
    if form == "context":
        return f"This is about the part that can be described so: {brief}\n{question}"
    return f"{when}, in the part that can be described so: {brief}\n{question}"


def _words(text: str) -> set[str]:
    found: list[str] = _WORD.findall(text.lower())
    return {_NUMBERS.get(word, word) for word in found} - _EMPTY
