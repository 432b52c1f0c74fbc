"""Placeholders: every accepted spelling becomes the numbered one, and text and media must agree."""

from __future__ import annotations

import pytest
from eagle_data.errors import SampleError
from eagle_data.placeholders import number_placeholders, split_placeholders
from eagle_data.samples import Message
from hypothesis import given, settings
from hypothesis import strategies as st


def number(*texts: str, images: int = 0, videos: int = 0) -> list[str]:
    messages = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return [message.text for message in number_placeholders(messages, images=images, videos=videos, where="f:1")]


def test_plain_placeholders_are_numbered_in_order_over_turns_and_lose_one_newline():
    assert number("<image>\nA <image>\n\nB", "yes", "<image>C", images=3) == ["<image-1>A <image-2>\nB", "yes", "<image-3>C"]


def test_numbered_placeholders_stay_where_they_are_with_their_newlines():
    assert number("<image-2>\nthen <image-1>", "ok", images=2) == ["<image-2>\nthen <image-1>", "ok"]


def test_media_that_no_turn_mentions_are_shown_before_the_first_user_turn():
    assert number("Look.", "ok", images=2, videos=1) == ["<image-1><image-2><video-1>Look.", "ok"]


def test_only_the_unmentioned_kind_is_added():
    assert number("<video>\nLook.", "ok", images=1, videos=1) == ["<image-1><video-1>Look.", "ok"]


def test_media_go_to_the_first_user_turn_and_not_to_the_system_turn():
    messages = [Message("system", "S"), Message("user", "Q"), Message("assistant", "A")]
    numbered = number_placeholders(messages, images=1, videos=0, where="f:1")
    assert [message.text for message in numbered] == ["S", "<image-1>Q", "A"]


def test_a_placeholder_in_an_answer_is_text():
    assert number("<image>Write a tag.", "<image> and <image-7>", images=1) == ["<image-1>Write a tag.", "<image> and <image-7>"]


def test_media_that_only_an_answer_mentions_are_refused():
    for text in ("<image> is a cat", "see <image-1>"):
        with pytest.raises(SampleError, match="only the answer in turn 2 mentions the attached images"):
            number("Look.", text, images=1)
        assert number("Look.", text, videos=1) == ["<video-1>Look.", text]
        assert number("Look.", text) == ["Look.", text]


@pytest.mark.parametrize(
    ("texts", "images", "words"),
    [
        (["<image>", "ok"], 2, "1 image placeholder(s) (<image-1>) but 2 image(s)"),
        (["<image><image>", "ok"], 1, "but 1 image(s) are attached"),
        (["<image>", "ok"], 0, "remove the placeholders"),
        (["<image-1><image-1>", "ok"], 1, "exactly once"),
        (["<image-2>", "ok"], 1, "(<image-2>)"),
        (["<image-0>", "ok"], 1, "(<image-0>)"),
        (["<image><image-2>", "ok"], 2, "use one spelling"),
        (["<image>" * 20, "ok"], 1, ", …)"),
    ],
)
def test_a_count_that_does_not_match_the_media_says_both_counts(texts: list[str], images: int, words: str):
    with pytest.raises(SampleError) as caught:
        number(*texts, images=images)
    assert words in caught.value.reason
    assert caught.value.kind == "placeholder mismatch"


def test_media_without_a_human_turn_are_refused():
    with pytest.raises(SampleError, match="no human turn"):
        number_placeholders([Message("assistant", "A")], images=1, videos=0, where="f:1")


def test_a_number_of_thousands_of_digits_is_text():
    text = f"<image-{'1' * 5000}>"
    assert number(text, "ok") == [text, "ok"]


@given(st.lists(st.sampled_from(["<image-1>", "<video-12>", "<image>", "text", "\n", "<image-x>", "<"]), max_size=12))
@settings(deadline=None, max_examples=100)
def test_the_parts_of_a_text_join_to_the_text(pieces: list[str]):
    text = "".join(pieces)
    parts = split_placeholders(text)
    assert "".join(part if isinstance(part, str) else f"<{part[0]}-{part[1]}>" for part in parts) == text
    assert "" not in parts
    assert sum(not isinstance(part, str) for part in parts) == sum(piece in ("<image-1>", "<video-12>") for piece in pieces)


@given(order=st.permutations(range(1, 6)), newline=st.booleans())
@settings(deadline=None, max_examples=30)
def test_any_order_of_all_numbers_is_kept(order: list[int], newline: bool):
    text = ("\n" if newline else " ").join(f"<image-{k}>" for k in order)
    assert number(text, "ok", images=5) == [text, "ok"]
