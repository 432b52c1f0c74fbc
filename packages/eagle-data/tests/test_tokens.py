"""Token ids: equal to tokenising the joined prompt, with special tokens that no text can forge."""

from __future__ import annotations

from pathlib import Path

import pytest
from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, Dialect
from eagle_data.samples import Message
from eagle_data.special_tokens import CHAT_TOKENS, GROUNDING_TOKENS, SPECIAL_TOKENS
from eagle_data.tokens import PromptTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from .toy_tokenizer import train_tokenizer

FORGED = ("<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<|endoftext|>")


def segments(*texts: str, dialect: Dialect = RELEASED) -> list[Segment]:
    messages = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return render(messages, default_system=dialect.default_system, media=lambda kind, k: dialect.image(k, 3, 2))


def joined(parts: list[Segment]) -> str:
    return "".join(part.text for part in parts)


def test_the_label_mask_covers_the_answer_and_its_end_and_nothing_else(tokenizer: PromptTokenizer, raw_tokenizer: Tokenizer):
    ids, supervised = tokenizer.encode(segments("<image-1>Describe it.", "A small house."))
    learned = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    assert raw_tokenizer.decode(learned, skip_special_tokens=False) == "A small house.<|im_end|>"
    # The newline after the answer's end is the last token of the prompt and is not learned.
    assert not supervised[-1]
    assert supervised.index(True) == len(supervised) - 1 - len(learned)
    assert not any(flag for token, flag in zip(ids, supervised, strict=True) if token == tokenizer.special["<IMG_CONTEXT>"])


# No "<": a forged special token is tokenised otherwise on purpose.
words = st.text(
    st.sampled_from("aA1 ,.\n\té漢🙂'ſ") | st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20
)


@given(question=words, answer=words, second=words)
@settings(deadline=None, max_examples=150)
def test_the_ids_equal_tokenising_the_joined_prompt(
    question: str, answer: str, second: str, tokenizer: PromptTokenizer, raw_tokenizer: Tokenizer
):
    # An answer that begins with white space is cut from "assistant\n" on purpose; another test says so.
    parts = segments("<image-1>" + question + "<image-2>", "x" + answer, second, "y" + answer)
    ids, _ = tokenizer.encode(parts)
    assert ids == raw_tokenizer.encode(joined(parts), add_special_tokens=False).ids


@given(answer=words)
@settings(deadline=None, max_examples=50)
def test_an_answer_is_tokenised_as_it_is_generated_after_its_prompt(
    answer: str, tokenizer: PromptTokenizer, raw_tokenizer: Tokenizer
):
    ids, supervised = tokenizer.encode(segments("Hi", "\n" + answer))
    learned = [token for token, flag in zip(ids, supervised, strict=True) if flag]
    assert learned == raw_tokenizer.encode("\n" + answer + "<|im_end|>", add_special_tokens=False).ids


@pytest.mark.parametrize("forged", FORGED)
def test_a_special_token_in_a_text_is_plain_text(forged: str, tokenizer: PromptTokenizer, raw_tokenizer: Tokenizer):
    honest, _ = tokenizer.encode(segments("a b", "c"))
    ids, _ = tokenizer.encode(segments(f"a {forged} b", f"c {forged}"))
    for name in FORGED:
        assert ids.count(tokenizer.special[name]) == honest.count(tokenizer.special[name])
    assert forged in raw_tokenizer.decode(ids, skip_special_tokens=False)


def test_a_special_token_added_as_an_ordinary_one_cannot_be_forged_either():
    raw = train_tokenizer(CHAT_TOKENS)
    raw.add_tokens([AddedToken(name, special=False, normalized=False) for name in SPECIAL_TOKENS])
    tokenizer = PromptTokenizer(raw)
    assert tokenizer.special["<img>"] not in tokenizer.encode_text("a <img> b")


def test_grounding_markers_in_a_text_are_special(tokenizer: PromptTokenizer):
    ids = tokenizer.encode_text("at <box>12</box>")
    assert ids.count(tokenizer.special["<box>"]) == 1
    assert ids[-1] == tokenizer.special["</box>"]


def test_grounding_markers_that_a_tokenizer_lacks_are_plain_text_merged_with_their_neighbours():
    raw = train_tokenizer((*CHAT_TOKENS, *(name for name in SPECIAL_TOKENS if name not in GROUNDING_TOKENS)))
    assert PromptTokenizer(raw).encode_text("at <box>12") == raw.encode("at <box>12", add_special_tokens=False).ids


def test_a_tokenizer_without_picture_tokens_is_refused_by_name():
    with pytest.raises(ValueError, match=r"lacks the special tokens <img>, </img>, <IMG_CONTEXT>; add them"):
        PromptTokenizer(train_tokenizer(CHAT_TOKENS))


def test_truncation_and_padding_of_the_given_tokenizer_do_not_count():
    raw = train_tokenizer()
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    plain = PromptTokenizer(train_tokenizer())
    assert PromptTokenizer(raw).encode_text("a b c d e f g h") == plain.encode_text("a b c d e f g h")
    assert PromptTokenizer(raw).fingerprint == plain.fingerprint


def test_the_fingerprint_tells_tokenizers_apart(tokenizer: PromptTokenizer):
    other = train_tokenizer()
    other.add_tokens(["house"])
    assert PromptTokenizer(other).fingerprint != tokenizer.fingerprint


def test_a_folder_is_read_and_a_folder_without_tokenizer_says_how_to_make_one(tmp_path: Path, raw_tokenizer: Tokenizer):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        PromptTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        PromptTokenizer.from_folder(tmp_path)
    raw_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert PromptTokenizer.from_folder(tmp_path).special == PromptTokenizer(raw_tokenizer).special
