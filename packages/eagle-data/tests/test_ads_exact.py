"""Plans against brute force: every number of frames and every tile limit tried, each by encoding the very prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from eagle_data.ads import DocumentPlan, Planner, VideoPlan, VisualPlan, VisualRules, image_plan, tile_steps, wished_frames
from eagle_data.ads_bound import optimum
from eagle_data.dialect import RELEASED, TRAINING
from eagle_data.encode import encode
from eagle_data.errors import SampleError
from eagle_data.samples import DocumentRef, ImageRef, Message, Sample, VideoRef
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from .test_ads_headers import bpe
from .test_ads_shares import handed_out

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A sample, what is known of its media, and the rules it is planned by."""

    sample: Sample
    sizes: list[Size]
    infos: list[VideoMetadata]
    pages: list[list[Size]]
    rules: VisualRules

    def planner(self, tokenizer: PromptTokenizer) -> Planner:
        return Planner(
            self.sample,
            image_sizes=self.sizes,
            video_infos=self.infos,
            document_sizes=self.pages,
            rules=self.rules,
            tokenizer=tokenizer,
        )

    def plans(self, tokenizer: PromptTokenizer) -> dict[tuple[int, int], VisualPlan]:
        """Every plan there is, by (step of frames, tile limit), with its length found by encoding it."""
        wishes = [*(wished_frames(info, self.rules) for info in self.infos), *map(len, self.pages)]
        limits = [*(info.frames for info in self.infos), *map(len, self.pages)]
        floors = [min(self.rules.min_frames, limit) for limit in limits]
        return {
            (step, t): self._plan(held, t, held[len(self.infos) :] == tuple(map(len, self.pages)), tokenizer)
            for step, held in enumerate(handed_out(wishes, floors))
            for t in tile_steps(self.rules)
        }

    def _plan(self, held: tuple[int, ...], t: int, all_pages: bool, tokenizer: PromptTokenizer) -> VisualPlan:
        videos = tuple(
            VideoPlan(uniform(info.frames, info.fps, n, start=ref.start or 0.0), info.duration)
            for ref, info, n in zip(self.sample.videos, self.infos, held, strict=False)
        )
        most = t if all_pages and self.rules.tile_pages else 1
        documents = []
        for pages, n in zip(self.pages, held[len(self.infos) :], strict=True):
            indices = uniform(len(pages), 1.0, n).indices
            documents.append(DocumentPlan(indices, tuple(image_plan(pages[i], most, self.rules) for i in indices)))
        images = tuple(image_plan(size, t, self.rules) for size in self.sizes)
        draft = VisualPlan(images, videos, t, 0, 0, (), tuple(documents))
        encoded = encode(self.sample, draft, rules=self.rules, tokenizer=tokenizer)
        return replace(draft, tiles=encoded.tiles, length=len(encoded.input_ids))


@st.composite
def cases(draw: st.DrawFn, *, documents: bool = True) -> Case:
    sizes = draw(st.lists(st.tuples(st.integers(8, 300), st.integers(8, 300)), max_size=2))
    infos = draw(
        st.lists(
            st.builds(
                lambda frames, fps: VideoMetadata(frames, fps, frames / fps, 64, 64, 0),
                st.integers(1, 60),
                st.sampled_from([1.0, 3.0, 8.0, 25.0]),
            ),
            max_size=2,
        )
    )
    infos = [info for info in infos if info.duration * 2 <= 30]
    page = st.tuples(st.integers(8, 200), st.integers(8, 200))
    pages = draw(st.lists(st.lists(page, min_size=1, max_size=12), max_size=2)) if documents else []
    marks = [*(f"<image-{k}>" for k in range(1, len(sizes) + 1)), *(f"<video-{k}>" for k in range(1, len(infos) + 1))]
    marks += [f"<document-{k}>" for k in range(1, len(pages) + 1)]
    words = st.sampled_from(["", "at 7", "see ", "\n", "3.5 or", " and 9"])
    text = "".join(draw(words) + mark for mark in draw(st.permutations(marks))) + "Which?"
    sample = Sample(
        "d",
        "a.jsonl:1",
        (Message("user", text), Message("assistant", "7 of them")),
        tuple(ImageRef(f"{k}.png") for k in range(len(sizes))),
        tuple(VideoRef(f"{k}.mp4", draw(st.sampled_from([None, 9.0, 96.5]))) for k in range(len(infos))),
        tuple(DocumentRef(f"{k}.pdf", tuple(range(1, len(own) + 1))) for k, own in enumerate(pages)),
    )
    max_tiles = draw(st.sampled_from([1, 3, 12]))
    rules = VisualRules(
        tile_size=32,
        tokens_per_tile=draw(st.sampled_from([1, 4])),
        min_frames=draw(st.integers(1, 4)),
        max_tiles=max_tiles,
        min_tiles=min(draw(st.sampled_from([1, 2])), max_tiles),
        use_thumbnail=draw(st.booleans()),
        tile_pages=draw(st.booleans()),
        dialect=draw(st.sampled_from([RELEASED, TRAINING])),
    )
    return Case(sample, sizes, infos, pages, rules)


def equals_brute_force(case: Case, tokenizer: PromptTokenizer, data: st.DataObject) -> None:
    plans = case.plans(tokenizer)
    lengths = sorted({plan.length for plan in plans.values()})
    planner = case.planner(tokenizer)
    near = st.sampled_from(lengths).flatmap(lambda n: st.sampled_from([n - 1, n, n + 1]))
    for context in data.draw(st.lists(near | st.integers(lengths[0], lengths[-1] + 9), min_size=1, max_size=5)):
        fitting = {key: plan for key, plan in plans.items() if plan.length <= context}
        # The floor needs room at one tile: a choice that fits only without its wrapper counts for nothing.
        if not fitting:
            with pytest.raises(SampleError):
                planner.plan(context)
            assert optimum(planner, context) == 0
            continue
        chosen, best = planner.plan(context), fitting[max(fitting)]
        shown = (chosen.images, chosen.videos, chosen.documents, chosen.tiles, chosen.length)
        assert shown == (best.images, best.videos, best.documents, best.tiles, best.length)
        assert optimum(planner, context) == max(plan.tiles for plan in fitting.values())


@given(case=cases(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_plans_equal_a_brute_force_search_over_frames_then_tiles(case: Case, data: st.DataObject, tokenizer: PromptTokenizer):
    equals_brute_force(case, tokenizer, data)


@pytest.mark.soak
@given(case=cases(), data=st.data())
@settings(deadline=None, max_examples=3000)
def test_many_plans_equal_a_brute_force_search(case: Case, data: st.DataObject, tokenizer: PromptTokenizer):
    equals_brute_force(case, tokenizer, data)


UNCUT = bpe(None, merge_digits=False)


@given(case=cases(documents=False), data=st.data())
@settings(deadline=None, max_examples=25)
def test_plans_are_exact_for_a_tokenizer_whose_costs_have_no_table(case: Case, data: st.DataObject):
    equals_brute_force(case, UNCUT, data)


@given(case=cases(), first=st.integers(20, 600), more=st.integers(0, 400))
@settings(deadline=None, max_examples=150)
def test_more_context_never_means_fewer_frames_or_pages(case: Case, first: int, more: int, tokenizer: PromptTokenizer):
    planner = case.planner(tokenizer)
    try:
        few = planner.plan(first)
    except SampleError:
        return
    many = planner.plan(first + more)
    assert few.length <= first
    assert many.length <= first + more
    assert all(len(a.frames) <= len(b.frames) for a, b in zip(few.videos, many.videos, strict=True))
    assert all(len(a.indices) <= len(b.indices) for a, b in zip(few.documents, many.documents, strict=True))
    if few.frames == many.frames:
        assert few.max_tiles <= many.max_tiles


lengths = st.sampled_from([32768, 65536, 131072])


@given(
    context=lengths,
    seconds=st.lists(st.floats(100, 20_000), min_size=1, max_size=3),
    images=st.integers(0, 4),
    words=st.integers(0, 1500),
    dialect=st.sampled_from([RELEASED, TRAINING]),
)
@settings(deadline=None, max_examples=60)
def test_videos_that_are_degraded_fill_at_least_97_percent_and_leave_less_than_a_frame(
    context: int, seconds: list[float], images: int, words: int, dialect: object, tokenizer: PromptTokenizer
):
    rules = VisualRules(dialect=TRAINING if dialect is TRAINING else RELEASED)
    infos = [VideoMetadata(int(s * 30), 30.0, s, 64, 64, 0) for s in seconds]
    text = "".join(f"<image-{k + 1}>" for k in range(images)) + "".join(f"<video-{k + 1}>" for k in range(len(infos)))
    sample = Sample(
        "d",
        "a.jsonl:1",
        (Message("user", text + "house 7 " * words), Message("assistant", "ok")),
        tuple(ImageRef(f"{k}.png") for k in range(images)),
        tuple(VideoRef(f"{k}.mp4") for k in range(len(infos))),
    )
    case = Case(sample, [(1600, 900)] * images, infos, [], rules)
    planner = case.planner(tokenizer)
    chosen, text_tokens = planner.plan(context), planner.text_tokens()
    assume("frames" in chosen.degraded)
    assert context - chosen.length < 256 + 25
    assert (chosen.length - text_tokens) / (context - text_tokens) >= 0.97
    assert chosen.wished_frames == sum(wished_frames(info, rules) for info in infos)


def document(pages: int, *, images: int = 0, **rules: object) -> Case:
    sample = Sample(
        "d",
        "a.jsonl:1",
        (Message("user", "<document-1>" + "".join(f"<image-{k + 1}>" for k in range(images)) + "?"), Message("assistant", "ok")),
        tuple(ImageRef(f"{k}.png") for k in range(images)),
        documents=(DocumentRef("a.pdf", tuple(range(11, 11 + pages))),),
    )
    return Case(sample, [(64, 64)] * images, [], [[(1700, 2200)] * pages], VisualRules(**rules))  # pyright: ignore


def test_pages_are_spread_over_a_document_that_does_not_fit_and_keep_one_tile(tokenizer: PromptTokenizer):
    case = document(300)
    chosen = case.planner(tokenizer).plan(32768)
    [shown] = chosen.documents
    assert (shown.indices[0], shown.indices[-1]) == (0, 299)
    assert max(b - a for a, b in pairwise(shown.indices)) - min(b - a for a, b in pairwise(shown.indices)) <= 1
    assert {image.tiles for image in shown.images} == {1}
    assert 32768 - 270 < chosen.length <= 32768
    assert chosen.record == (f"frames {len(shown.indices)}/300", f"tiles {len(shown.indices)}/3900")


def test_a_document_shown_whole_is_tiled_unless_the_rules_forbid_it(tokenizer: PromptTokenizer):
    tiled = document(8).planner(tokenizer).plan(32768)
    assert (tiled.max_tiles, {image.tiles for image in tiled.documents[0].images}, tiled.degraded) == (12, {13}, ())
    plain = document(8, tile_pages=False).planner(tokenizer).plan(32768)
    assert ({image.tiles for image in plain.documents[0].images}, plain.tiles, plain.degraded) == ({1}, 8, ())


def test_pages_are_numbered_behind_the_images_and_read_from_their_file(tokenizer: PromptTokenizer, raw_tokenizer):
    case = document(3, images=2, tokens_per_tile=2, tile_pages=False)
    chosen = case.planner(tokenizer).plan(400)
    encoded = encode(case.sample, chosen, rules=case.rules, tokenizer=tokenizer)
    text = raw_tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False).replace("<IMG_CONTEXT>", "")
    assert "<image 3><img></img><image 4><img></img><image 5><img></img><image 1><img></img><image 2><img></img>?" in text
    assert [unit.path for unit in encoded.units] == ["a.pdf::11", "a.pdf::12", "a.pdf::13", "0.png", "1.png"]


def test_a_refusal_says_what_would_have_to_fit(tokenizer: PromptTokenizer):
    with pytest.raises(SampleError, match=r"all its text \(\d+ tokens\), at least 8 pages, but the context length is 900"):
        document(30).planner(tokenizer).plan(900)
    with pytest.raises(SampleError, match=r"the text alone needs \d+ tokens, but the context length is 10"):
        document(30).planner(tokenizer).plan(10)


def test_documents_without_the_sizes_of_their_pages_are_refused(tokenizer: PromptTokenizer):
    case = document(3)
    with pytest.raises(ValueError, match=r"a.jsonl:1: documents of \[3\] pages, but sizes of \[2\]"):
        replace(case, pages=[[(64, 64)] * 2]).planner(tokenizer)


def test_frame_counts_may_be_odd(tokenizer: PromptTokenizer):
    sample = Sample("d", "a.jsonl:1", (Message("user", "<video-1>?"), Message("assistant", "ok")), (), (VideoRef("a.mp4"),))
    case = Case(sample, [], [VideoMetadata(9000, 30.0, 300.0, 64, 64, 0)], [], VisualRules())
    planner = case.planner(tokenizer)
    counts = {planner.plan(context).frames for context in range(6000, 12000, 100)}
    assert {n % 2 for n in counts} == {0, 1}
