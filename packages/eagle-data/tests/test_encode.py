"""Encoding: ids and labels stand together, pictures come in the order of the text, disagreement is an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from eagle_data.ads import ImagePlan, VideoPlan, VisualPlan, VisualRules
from eagle_data.dialect import Dialect
from eagle_data.encode import IGNORE, WITHHELD, ImageUnit, VideoUnit, encode
from eagle_data.errors import SampleError
from eagle_data.samples import ImageRef, Message, Sample, VideoRef
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer

RULES = VisualRules(tile_size=32, tokens_per_tile=4)
SAMPLE = Sample(
    "d",
    "a.jsonl:3",
    (
        Message("user", "<image-2>then <video-1>and"),
        Message("assistant", "ok <image-1>"),
        Message("user", "<image-1>?"),
        Message("assistant", "yes"),
    ),
    (ImageRef("a.png"), ImageRef("s.lmdb", "b")),
    (VideoRef("c.mp4", 1.0, 3.0),),
)
PLAN = VisualPlan(
    images=(ImagePlan((1, 1), 1), ImagePlan((2, 1), 3)),
    videos=(VideoPlan(uniform(20, 10.0, 2, start=1.0), 2.0),),
    max_tiles=12,
    tiles=6,
    length=0,
    degraded=(),
)


def test_pictures_are_listed_in_the_order_of_the_text(tokenizer: PromptTokenizer):
    encoded = encode(SAMPLE, PLAN, rules=RULES, tokenizer=tokenizer)
    assert encoded.units == (
        ImageUnit("s.lmdb", "b", (2, 1), 3),
        VideoUnit("c.mp4", 1.0, 3.0, (0, 19)),
        ImageUnit("a.png", None, (1, 1), 1),
    )
    assert encoded.tiles == 6


def test_labels_are_the_ids_of_the_answers_and_ignored_elsewhere(tokenizer: PromptTokenizer, raw_tokenizer):
    encoded = encode(SAMPLE, PLAN, rules=RULES, tokenizer=tokenizer)
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32
    learned = encoded.labels != IGNORE
    assert np.array_equal(encoded.labels[learned], encoded.input_ids[learned])
    text = raw_tokenizer.decode([int(i) for i in encoded.labels[learned]], skip_special_tokens=False)
    assert text == "ok <image-1><|im_end|>yes<|im_end|>"


def test_an_answer_that_is_not_learned_keeps_its_ids_and_has_no_labels(tokenizer: PromptTokenizer, raw_tokenizer):
    first, read, *rest = SAMPLE.messages
    sample = replace(SAMPLE, messages=(first, replace(read, learned=False), *rest))
    plain, encoded = (encode(each, PLAN, rules=RULES, tokenizer=tokenizer) for each in (SAMPLE, sample))
    assert np.array_equal(encoded.input_ids, plain.input_ids)
    assert encoded.units == plain.units
    learned, withheld = encoded.input_ids[encoded.labels >= 0], encoded.input_ids[encoded.labels == WITHHELD]
    assert raw_tokenizer.decode([int(i) for i in learned], skip_special_tokens=False) == "yes<|im_end|>"
    assert raw_tokenizer.decode([int(i) for i in withheld], skip_special_tokens=False) == "ok <image-1><|im_end|>"


def test_fewer_context_tokens_than_pictures_is_an_error_with_both_counts(tokenizer: PromptTokenizer):
    class OneTokenDialect(Dialect):
        def image(self, k: int, tokens: int, count: int) -> str:
            return "<img><IMG_CONTEXT></img>"

    forgetful = OneTokenDialect(
        "x", "", tag_single_image=True, after_image="", after_video="", times_frames=True, states_duration=False
    )
    with pytest.raises(
        SampleError, match=r"a.jsonl:3: the text holds 10 <IMG_CONTEXT> tokens but its media give 6 tiles of 4"
    ) as caught:
        encode(SAMPLE, PLAN, rules=replace(RULES, dialect=forgetful), tokenizer=tokenizer)
    assert caught.value.kind == "placeholder mismatch"


def test_a_conversation_without_a_supervised_token_is_an_error(tokenizer: PromptTokenizer):
    mute = Sample("d", "a.jsonl:4", (Message("user", "hi"),))
    empty = VisualPlan((), (), 12, 0, 0, ())
    with pytest.raises(SampleError, match="no token is supervised"):
        encode(mute, empty, rules=RULES, tokenizer=tokenizer)
