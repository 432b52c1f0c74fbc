"""What the wrapper of a video frame costs in tokens, from a table over its form: digits of the frame number and of the seconds.

`frame_table` gives a table only where it can show that the tokenizer counts by form: digits are tokenised apart from all else,
one by one as in Qwen's tokenizers or in groups of up to three, and all groups of one length cost the same. For any other
tokenizer it gives None, and costs are counted by tokenising every frame. Knows nothing of videos or budgets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from eagle_data.chat import Segment
from eagle_data.dialect import Dialect
from eagle_data.tokens import PromptTokenizer

MOST_DIGITS = 6
"""Digits of frame numbers and of whole seconds that the table covers: 999 999 frames, 277 hours."""

_LONGEST_GROUP = 3
_FILLINGS = ("1234567890", "9876543210", "5555555555")


@dataclass(frozen=True)
class FrameTable:
    """Tokens of one frame's text besides its context tokens.

    `first` is for a one-digit number at less than 10 s. `number_steps[d]` is what a number of d + 2 digits costs more than one of
    d + 1, and `time_steps[d]` the same for whole seconds; no step is negative.
    """

    first: int
    number_steps: tuple[int, ...]
    time_steps: tuple[int, ...]

    def tokens(self, number: int, seconds: float) -> int:
        """Tokens of frame `number` (from 1) shown at `seconds`, its context tokens left out."""
        return self.first + sum(self.number_steps[: len(str(number)) - 1]) + sum(self.time_steps[: len(f"{seconds:.2f}") - 4])

    def total(self, count: int) -> int:
        """Tokens of frames 2 to `count` together, each taken as if it were shown before 10 s."""
        tokens, longer = self.first * (count - 1), 10
        for step in self.number_steps:
            if count < longer:
                break
            tokens += step * (count + 1 - longer)
            longer *= 10
        return tokens


@lru_cache(maxsize=16)
def frame_table(tokenizer: PromptTokenizer, dialect: Dialect) -> FrameTable | None:
    """The table of a tokenizer and dialect, or None where costs do not depend on the form alone."""
    if not _counts_digits_by_group(tokenizer, dialect):
        return None

    def cost(number: int, seconds: float) -> int:
        return frame_tokens(tokenizer, dialect, number, seconds)

    forms = [(10**a, 10.0**b if b else 0.0) for a in range(MOST_DIGITS) for b in range(MOST_DIGITS)]
    numbers = [cost(10**a, 0.0) for a in range(MOST_DIGITS)]
    times = [cost(1, 10.0**b if b else 0.0) for b in range(MOST_DIGITS)]
    table = FrameTable(
        numbers[0],
        tuple(after - before for before, after in itertools.pairwise(numbers)),
        tuple(after - before for before, after in itertools.pairwise(times)),
    )
    additive = all(cost(number, seconds) == table.tokens(number, seconds) for number, seconds in forms)
    return table if additive and min(*table.number_steps, *table.time_steps) >= 0 else None


def frame_tokens(tokenizer: PromptTokenizer, dialect: Dialect, number: int, seconds: float) -> int:
    """Tokens of one frame's text besides its context tokens, by tokenising it."""
    return len(tokenizer.encode([Segment(dialect.frame(number, seconds, 1), markup=True)])[0]) - 1


@lru_cache(maxsize=16)
def printing_thresholds() -> tuple[float, ...]:
    """The least number of seconds that is printed with 2, 3, … digits before its point (9.995 and so on, to the last bit)."""
    found = []
    for digits in range(1, MOST_DIGITS + 1):
        seconds = 10.0**digits - 0.005
        while len(f"{seconds:.2f}") - 3 > digits:
            seconds = math.nextafter(seconds, 0.0)
        while len(f"{seconds:.2f}") - 3 <= digits:
            seconds = math.nextafter(seconds, math.inf)
        found.append(seconds)
    return tuple(found)


def _counts_digits_by_group(tokenizer: PromptTokenizer, dialect: Dialect) -> bool:
    """Whether digits are cut from all other characters, in groups that depend on their number alone, of equal cost each."""
    lengths: set[int] = set()
    for texts in _texts_by_form(dialect):
        cuts = set()
        for text in texts:
            pieces = tokenizer.pieces(text)
            if pieces is None or "".join(pieces) != text:
                return False
            groups = [piece for piece in pieces if any(letter in "0123456789" for letter in piece)]
            if not all(piece.isdigit() and len(piece) <= _LONGEST_GROUP for piece in groups):
                return False
            lengths.update(map(len, groups))
            cuts.add(tuple(map(len, pieces)))
        if len(cuts) > 1:
            return False
    costs = {n: {len(tokenizer.encode_text(f"{value:0{n}}")) for value in range(10**n)} for n in lengths}
    # A longer group must not be cheaper: the rate printed before the first frame grows with the number of frames.
    counts = [next(iter(costs[n])) for n in sorted(costs)]
    return all(len(found) == 1 for found in costs.values()) and counts == sorted(counts)


def _texts_by_form(dialect: Dialect) -> Iterator[list[str]]:
    """For every form, texts of that form with different digits; what the model reads up to the first `<img>` and between two."""
    for a, b in itertools.product(range(1, MOST_DIGITS + 1), repeat=2):
        texts = []
        for digits in _FILLINGS:
            number, seconds, rate = int(digits[:a]), float(f"{digits[:b]}.{digits[3:5]}"), float(f"{digits[:a]}.{digits[4:6]}")
            header = dialect.video_header(1, rate, number, seconds)
            texts.append(header + dialect.frame(number, seconds, 0).split("<")[0])
        yield texts
