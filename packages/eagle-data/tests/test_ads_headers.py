"""The table of frame headers: equal to the tokenizer for every form that can occur, absent where it could not be."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from eagle_data.ads_headers import MOST_DIGITS, frame_table, frame_tokens, printing_thresholds
from eagle_data.chat import Segment
from eagle_data.dialect import RELEASED, TRAINING, Dialect
from eagle_data.special_tokens import CHAT_TOKENS, SPECIAL_TOKENS
from eagle_data.tokens import PromptTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from .toy_tokenizer import QWEN_SPLIT, TEXTS, train_tokenizer

DIALECTS = pytest.mark.parametrize("dialect", [RELEASED, TRAINING], ids=lambda dialect: dialect.name)


def bpe(split: str | None, *, merge_digits: bool) -> PromptTokenizer:
    """A byte-level BPE whose texts are cut by `split`, trained on numbers when digits are to be merged."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), behavior="isolated"), byte_level]) if split else byte_level
    )
    texts = [*TEXTS, *(f"{n:0{digits}} " for digits in (2, 3) for n in range(10**digits))] if merge_digits else TEXTS
    trainer = trainers.BpeTrainer(
        vocab_size=2500, min_frequency=1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([*CHAT_TOKENS, *SPECIAL_TOKENS])
    return PromptTokenizer(tokenizer)


def times_of_every_form() -> Iterator[float]:
    """Whole seconds that begin, end and cross every number of digits, with fractions that print all ten digits."""
    for digits in range(MOST_DIGITS):
        for seconds in {0, 1, 9, 10**digits, 10**digits - 1, 5 * 10**digits, 10**digits + 7}:
            for fraction in (0.0, 0.01, 0.12, 0.34, 0.56, 0.78, 0.9, 0.99, 0.994, 0.996):
                yield seconds + fraction
    yield from printing_thresholds()[:-1]
    yield from (math.nextafter(threshold, 0.0) for threshold in printing_thresholds())


@DIALECTS
def test_every_frame_number_costs_what_the_table_says(dialect: Dialect, tokenizer: PromptTokenizer):
    table = frame_table(tokenizer, dialect)
    assert table is not None
    for number in [*range(1, 10_002), 99_999, 100_000, 123_456, 999_999]:
        assert table.tokens(number, 0.0) == frame_tokens(tokenizer, dialect, number, 0.0)


@DIALECTS
def test_every_form_of_number_and_time_costs_what_the_table_says(dialect: Dialect, tokenizer: PromptTokenizer):
    table = frame_table(tokenizer, dialect)
    assert table is not None
    for seconds in times_of_every_form():
        for number in (1, 9, 10, 42, 99, 100, 777, 999, 1000, 9999, 10_000, 99_999, 100_000, 999_999):
            assert table.tokens(number, seconds) == frame_tokens(tokenizer, dialect, number, seconds), (number, seconds)


@pytest.mark.soak
@DIALECTS
def test_a_day_in_steps_of_0_37_seconds_costs_what_the_table_says(dialect: Dialect, tokenizer: PromptTokenizer):
    table = frame_table(tokenizer, dialect)
    assert table is not None
    for hundredths in range(0, 8_640_000, 37):
        seconds = hundredths / 100
        assert table.tokens(3, seconds) == frame_tokens(tokenizer, dialect, 3, seconds), seconds


@given(number=st.integers(1, 999_999), seconds=st.floats(0, 999_999), dialect=st.sampled_from([RELEASED, TRAINING]))
@settings(deadline=None, max_examples=300)
def test_any_frame_costs_what_the_table_says(number: int, seconds: float, dialect: Dialect, tokenizer: PromptTokenizer):
    table = frame_table(tokenizer, dialect)
    assert table is not None
    assert table.tokens(number, seconds) == frame_tokens(tokenizer, dialect, number, seconds)


@DIALECTS
def test_the_total_is_the_sum_over_frames(dialect: Dialect, tokenizer: PromptTokenizer):
    table = frame_table(tokenizer, dialect)
    assert table is not None
    total = 0
    for count in range(1, 1200):
        total += table.tokens(count, 0.0) if count > 1 else 0
        assert table.total(count) == total


def test_a_frame_costs_the_same_alone_and_between_others(tokenizer: PromptTokenizer):
    frames = [RELEASED.frame(i, 9.0 * i, 2) for i in range(1, 130)]
    together = len(tokenizer.encode([Segment("".join(frames), markup=True)])[0])
    assert together == sum(frame_tokens(tokenizer, RELEASED, i, 9.0 * i) + 2 for i in range(1, 130))


def test_thresholds_are_the_least_times_of_their_number_of_digits():
    for digits, threshold in enumerate(printing_thresholds(), 2):
        assert len(f"{threshold:.2f}") - 3 == digits
        assert len(f"{math.nextafter(threshold, 0.0):.2f}") - 3 == digits - 1


def test_a_tokenizer_that_makes_tokens_of_up_to_three_digits_has_a_table_too():
    tokenizer = bpe(QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), merge_digits=True)
    assert len(tokenizer.encode_text("123")) == 1
    table = frame_table(tokenizer, RELEASED)
    assert table is not None
    assert table.number_steps[:4] == (0, 0, 1, 0)
    for number in (1, 12, 123, 1234, 99_999, 123_456):
        for seconds in (0.0, 9.996, 99.99, 123.45, 1234.5, 99_999.0):
            assert table.tokens(number, seconds) == frame_tokens(tokenizer, RELEASED, number, seconds)


@pytest.mark.parametrize(
    "split",
    [None, r" ?\p{N}+| ?\p{L}+|[^\p{L}\p{N}]", QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")],
    ids=["uncut", "digits with their space", "groups whose cost differs"],
)
def test_a_tokenizer_that_does_not_count_by_form_has_no_table(split: str | None):
    assert frame_table(bpe(split, merge_digits=False), RELEASED) is None


def test_the_table_belongs_to_its_tokenizer_and_dialect(tokenizer: PromptTokenizer):
    released, training = frame_table(tokenizer, RELEASED), frame_table(tokenizer, TRAINING)
    assert released is not None
    assert training is not None
    assert released.first > training.first
    assert sum(training.time_steps) == 0
    assert frame_table(PromptTokenizer(train_tokenizer()), RELEASED) == released
