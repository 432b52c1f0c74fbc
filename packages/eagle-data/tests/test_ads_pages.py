"""Pages of documents cost what tokenising the whole prompt gives, whatever the tokenizer, and are cut as each alone would be."""

from __future__ import annotations

import pytest
from eagle_data import ads
from eagle_data.ads import Planner, VisualRules, image_plan, tile_steps
from eagle_data.ads_headers import frame_table
from eagle_data.ads_pages import page_table, pages_shown
from eagle_data.chat import Segment, render
from eagle_data.dialect import RELEASED, TRAINING, Dialect
from eagle_data.samples import DocumentRef, ImageRef, Message, Sample
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer
from eagle_data.visual_plan import page_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_ads_headers import bpe

MERGING = bpe(None, merge_digits=True)
"""No text is cut before it is merged: a page's number costs what its neighbours let it cost."""

Size = tuple[int, int]
DIALECTS = st.sampled_from([RELEASED, TRAINING])


def documents(sizes: list[Size], pages: list[list[Size]], words: list[str]) -> Sample:
    marks = [*(f"<image-{k + 1}>" for k in range(len(sizes))), *(f"<document-{k + 1}>" for k in range(len(pages)))]
    text = "".join(word + mark for word, mark in zip(words, marks, strict=False)) + words[-1]
    return Sample(
        "d",
        "a.jsonl:1",
        (Message("user", text), Message("assistant", "7 of them")),
        tuple(ImageRef(f"{k}.png") for k in range(len(sizes))),
        documents=tuple(DocumentRef(f"{k}.pdf", tuple(range(1, len(own) + 1))) for k, own in enumerate(pages)),
    )


def length_of_the_whole_prompt(
    sample: Sample, sizes: list[Size], pages: list[list[Size]], shown: tuple[int, ...], tiles: int, planner: Planner
) -> int:
    """The length by the definition: every picture cut alone, every page's text in the prompt, all of it tokenised."""
    rules = planner.rules
    most = tiles if rules.tile_pages and shown == tuple(map(len, pages)) else 1
    numbers, count = page_numbers(len(sizes), shown), len(sizes) + sum(shown)

    def media(kind: str, k: int) -> str:
        if kind == "image":
            return rules.dialect.image(k, image_plan(sizes[k - 1], tiles, rules).tiles, count)
        own = [pages[k - 1][i] for i in uniform(len(pages[k - 1]), 1.0, shown[k - 1]).indices]
        return "".join(
            rules.dialect.image(n, image_plan(size, most, rules).tiles, count)
            for n, size in zip(numbers[k - 1], own, strict=True)
        )

    segments = render(sample.messages, default_system=rules.dialect.default_system, media=media)
    return len(planner.tokenizer.encode(segments)[0])


@pytest.mark.parametrize("merging", [False, True])
@given(
    sizes=st.lists(st.tuples(st.integers(8, 300), st.integers(8, 300)), max_size=2),
    pages=st.lists(
        st.lists(st.tuples(st.integers(8, 90), st.integers(8, 90)), min_size=1, max_size=4).flatmap(
            lambda kinds: st.lists(st.sampled_from(kinds), min_size=1, max_size=120)
        ),
        min_size=1,
        max_size=3,
    ),
    words=st.lists(st.sampled_from(["", "at 7", "see ", "\n", "3.5 or", "<"]), min_size=6, max_size=6),
    dialect=DIALECTS,
    tile_pages=st.booleans(),
    min_tiles=st.sampled_from([1, 3]),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_a_document_is_as_long_as_its_whole_prompt(
    merging: bool,
    sizes: list[Size],
    pages: list[list[Size]],
    words: list[str],
    dialect: Dialect,
    tile_pages: bool,
    min_tiles: int,
    data: st.DataObject,
    tokenizer: PromptTokenizer,
):
    rules = VisualRules(tile_size=32, tokens_per_tile=1, min_tiles=min_tiles, tile_pages=tile_pages, dialect=dialect)
    sample = documents(sizes, pages, words)
    planner = Planner(
        sample,
        image_sizes=sizes,
        video_infos=[],
        document_sizes=pages,
        rules=rules,
        tokenizer=MERGING if merging else tokenizer,
    )
    whole = st.just(tuple(map(len, pages)))
    for _ in range(4):
        shown = data.draw(whole | st.tuples(*(st.integers(1, len(own)) for own in pages)))
        tiles = data.draw(st.sampled_from(tile_steps(rules)))
        assert planner.length(shown, tiles) == length_of_the_whole_prompt(sample, sizes, pages, shown, tiles, planner)


@given(first=st.integers(1, 1200), more=st.integers(0, 300), dialect=DIALECTS, merging=st.booleans())
@settings(deadline=None, max_examples=60)
def test_later_pages_cost_what_they_add_to_the_first(
    first: int, more: int, dialect: Dialect, merging: bool, tokenizer: PromptTokenizer
):
    own = MERGING if merging else tokenizer
    texts = [dialect.image(k, 1, 2) for k in range(first, first + more + 1)]
    ids = [len(own.encode([Segment(text, markup=True)])[0]) for text in ("".join(texts), texts[0])]
    assert page_table(own, dialect).later(range(first, first + more + 1)) == ids[0] - ids[1] - more


def test_what_follows_a_picture_is_the_same_for_all_numbers_as_the_table_needs():
    for dialect in (RELEASED, TRAINING):
        assert len({dialect.image(k, 3, 2).rpartition("<IMG_CONTEXT>")[2] for k in range(1, 1200)}) == 1
        assert len({dialect.image(7, 3, count) for count in (2, 3, 99)}) == 1


def test_pages_are_placed_as_frames_are():
    assert all(pages_shown(total, n) == uniform(total, 1.0, n).indices for total in range(1, 40) for n in range(1, total + 1))


def test_a_long_document_is_not_tokenised_for_every_number_of_pages(tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch):
    pages = [[(1700, 2200)] * 300]
    sample, rules = documents([], pages, ["", "Which?"]), VisualRules()
    page_table(tokenizer, rules.dialect).later(range(1, 301))
    frame_table(tokenizer, rules.dialect)
    texts: list[int] = []
    encode, cut = PromptTokenizer.encode, ads.image_plan
    cuts: list[Size] = []
    monkeypatch.setattr(PromptTokenizer, "encode", lambda self, segments: texts.append(1) or encode(self, segments))
    monkeypatch.setattr(ads, "image_plan", lambda size, *rest: cuts.append(size) or cut(size, *rest))
    planner = Planner(sample, image_sizes=[], video_infos=[], document_sizes=pages, rules=rules, tokenizer=tokenizer)
    planned = [planner.plan(context) for context in (16384, 32768, 131072)]
    assert [0 < plan.frames < 300 for plan in planned] == [True, True, False]
    assert len(texts) == 1
    assert len(cuts) <= len(tile_steps(rules))
