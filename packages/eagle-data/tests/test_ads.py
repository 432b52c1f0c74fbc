"""Degradation sampling: plans never exceed the context, are maximal, and equal the paper's figures where costs are flat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from eagle_data.ads import VisualPlan, VisualRules, plan, tile_steps, wished_frames
from eagle_data.chat import Segment
from eagle_data.dialect import RELEASED, TRAINING, Dialect
from eagle_data.encode import encode
from eagle_data.errors import EagleDataError, SampleError
from eagle_data.samples import ImageRef, Message, Sample, VideoRef
from eagle_data.special_tokens import IMG_CONTEXT
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.tokens import PromptTokenizer
from eagle_data.video import VideoMetadata
from hypothesis import assume, given, settings
from hypothesis import strategies as st


class FlatDialect(Dialect):
    """Pictures cost their context tokens and `wrapper` tokens a frame, as the paper's formula has it (with wrapper 0)."""

    wrapper = 0

    def image(self, k: int, tokens: int, count: int) -> str:
        return IMG_CONTEXT * tokens

    def video_header(self, k: int, fps: float | None, frames: int, duration: float | None = None) -> str:
        return ""

    def frame(self, i: int, seconds: float | None, tokens: int) -> str:
        # The toy tokenizer, like Qwen's, makes a token of each digit.
        return "7" * self.wrapper + IMG_CONTEXT * tokens


class TenTokenDialect(FlatDialect):
    wrapper = 10


def flat(kind: type[FlatDialect] = FlatDialect) -> Dialect:
    return kind("flat", "", tag_single_image=False, after_image="", after_video="", times_frames=False, states_duration=False)


FLAT = VisualRules(dialect=flat())
SMALL = VisualRules(tile_size=32, tokens_per_tile=4, dialect=flat())


def metadata(seconds: float, fps: float = 25.0) -> VideoMetadata:
    return VideoMetadata(max(1, round(seconds * fps)), fps, max(1, round(seconds * fps)) / fps, 64, 64, 0)


def sample(images: int = 0, videos: int = 0, digits: int = 0, starts: Sequence[float | None] = ()) -> Sample:
    text = "".join(f"<image-{k + 1}>" for k in range(images)) + "".join(f"<video-{k + 1}>" for k in range(videos))
    clips = [VideoRef(f"{k}.mp4", starts[k] if starts else None) for k in range(videos)]
    messages = (Message("user", text + "1" * digits), Message("assistant", "ok"))
    return Sample("d", "a.jsonl:1", messages, tuple(ImageRef(f"{k}.png") for k in range(images)), tuple(clips))


def planned(
    tokenizer: PromptTokenizer,
    context_length: int,
    rules: VisualRules,
    sizes: Sequence[tuple[int, int]] = (),
    infos: Sequence[VideoMetadata] = (),
    digits: int = 0,
) -> VisualPlan:
    item = sample(len(sizes), len(infos), digits)
    return plan(item, image_sizes=sizes, video_infos=infos, context_length=context_length, rules=rules, tokenizer=tokenizer)


def with_text_of(tokenizer: PromptTokenizer, tokens: int) -> int:
    """How many digits make the text of a prompt `tokens` long: each digit is one token."""
    bare = planned(tokenizer, 10**6, FLAT).length
    return tokens - bare


def frames_of(chosen: VisualPlan) -> tuple[int, ...]:
    return tuple(len(video.frames) for video in chosen.videos)


@pytest.mark.parametrize(("context", "frames"), [(4096, 12), (8192, 28), (32768, 124), (65536, 252), (131072, 508)])
def test_the_frame_budgets_of_the_formula(context: int, frames: int, tokenizer: PromptTokenizer):
    digits = with_text_of(tokenizer, 1000)
    assert frames_of(planned(tokenizer, context, FLAT, infos=[metadata(3600)], digits=digits)) == (frames,)


@pytest.mark.parametrize(("context", "frames"), [(4096, 11), (8192, 27), (32768, 119), (65536, 242), (131072, 488)])
def test_the_frame_budgets_when_ten_wrapper_tokens_a_frame_are_charged(context: int, frames: int, tokenizer: PromptTokenizer):
    digits = with_text_of(tokenizer, 1000)
    rules = replace(FLAT, dialect=flat(TenTokenDialect))
    assert frames_of(planned(tokenizer, context, rules, infos=[metadata(3600)], digits=digits)) == (frames,)


PAGE, WIDE, UHD = (1700, 2200), (2000, 1300), (3840, 2160)


@pytest.mark.parametrize(
    ("context", "text", "sizes", "seconds", "frames", "tiles", "image_tokens"),
    [
        (32768, 2000, [], 600, 120, 12, 0),
        (32768, 2000, [], 30, 60, 12, 0),
        (65536, 2000, [], 600, 248, 12, 0),
        (131072, 2000, [], 600, 504, 12, 0),
        (32768, 500, [UHD], 0, 0, 12, 3328),
        (8192, 2000, [UHD] * 4, 0, 0, 4, 5120),
        (32768, 2000, [PAGE] * 20, 0, 0, 4, 25600),
        (32768, 2000, [WIDE] * 4, 45, 90, 6, 7168),
    ],
)
def test_the_reference_figures_of_the_paper(
    context: int,
    text: int,
    sizes: list[tuple[int, int]],
    seconds: float,
    frames: int,
    tiles: int,
    image_tokens: int,
    tokenizer: PromptTokenizer,
):
    infos = [metadata(seconds)] if seconds else []
    chosen = planned(tokenizer, context, FLAT, sizes, infos, with_text_of(tokenizer, text))
    assert sum(frames_of(chosen)) == frames
    assert chosen.max_tiles == tiles
    assert sum(image.tiles for image in chosen.images) * 256 == image_tokens
    assert chosen.length == text + frames * 256 + image_tokens


def test_a_video_that_cannot_get_its_least_frames_is_refused(tokenizer: PromptTokenizer):
    with pytest.raises(SampleError, match=r"needs 33048 tokens .* 8 frames, but the context length is 32768") as caught:
        planned(tokenizer, 32768, FLAT, infos=[metadata(600)], digits=with_text_of(tokenizer, 31000))
    assert caught.value.kind == "too long"


def test_text_that_does_not_fit_is_refused_and_never_cut(tokenizer: PromptTokenizer):
    length = planned(tokenizer, 10**6, FLAT, digits=500).length
    assert planned(tokenizer, length, FLAT, digits=500).length == length
    with pytest.raises(SampleError, match="shorten the conversation"):
        planned(tokenizer, length - 1, FLAT, digits=500)


def test_a_video_shorter_than_the_least_is_shown_whole(tokenizer: PromptTokenizer):
    chosen = planned(tokenizer, 32768, FLAT, infos=[metadata(0.12)])
    assert chosen.videos[0].frames.indices == (0, 1, 2)
    assert chosen.degraded == ()


sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
videos = st.builds(metadata, st.floats(0.04, 900), st.sampled_from([1.0, 8.0, 23.976, 25.0, 30.0]))
dialects = st.sampled_from([RELEASED, TRAINING])


@given(
    data=st.lists(sizes, max_size=4),
    infos=st.lists(videos, max_size=3),
    context=st.integers(64, 6000),
    dialect=dialects,
    tokens=st.sampled_from([1, 4, 64]),
    min_frames=st.integers(1, 8),
)
@settings(deadline=None, max_examples=60)
def test_a_plan_is_as_long_as_it_says_fits_and_shows_every_picture(
    data: list[tuple[int, int]],
    infos: list[VideoMetadata],
    context: int,
    dialect: Dialect,
    tokens: int,
    min_frames: int,
    tokenizer: PromptTokenizer,
):
    rules = VisualRules(tokens_per_tile=tokens, dialect=dialect, min_frames=min_frames)
    item = sample(len(data), len(infos))
    try:
        chosen = plan(item, image_sizes=data, video_infos=infos, context_length=context, rules=rules, tokenizer=tokenizer)
    except SampleError:
        return
    encoded = encode(item, chosen, rules=rules, tokenizer=tokenizer)
    assert len(encoded.input_ids) == chosen.length <= context
    assert encoded.tiles == chosen.tiles
    assert (encoded.input_ids == tokenizer.special[IMG_CONTEXT]).sum() == chosen.tiles * tokens
    for info, n in zip(infos, frames_of(chosen), strict=True):
        assert min(min_frames, info.frames) <= n <= wished_frames(info, rules)


@given(info=videos, first=st.integers(300, 4000), more=st.integers(0, 4000), dialect=dialects, tokens=st.sampled_from([1, 4, 64]))
@settings(deadline=None, max_examples=50)
def test_more_context_never_means_fewer_frames(
    info: VideoMetadata, first: int, more: int, dialect: Dialect, tokens: int, tokenizer: PromptTokenizer
):
    rules = VisualRules(tokens_per_tile=tokens, dialect=dialect, min_frames=1)
    few, many = (frames_of(planned(tokenizer, n, rules, infos=[info])) for n in (first, first + more))
    assert few[0] <= many[0]


@given(info=videos, context=st.integers(400, 4000), dialect=dialects)
@settings(deadline=None, max_examples=40)
def test_one_frame_more_than_planned_does_not_fit(
    info: VideoMetadata, context: int, dialect: Dialect, tokenizer: PromptTokenizer
):
    rules = VisualRules(tokens_per_tile=64, dialect=dialect, min_frames=1)
    n = frames_of(planned(tokenizer, context, rules, infos=[info]))[0]
    assume(n < wished_frames(info, rules))
    longer = replace(rules, min_frames=n + 1)
    with pytest.raises(SampleError):
        planned(tokenizer, context, longer, infos=[info])


@given(
    data=st.lists(st.tuples(st.integers(8, 400), st.integers(8, 400)), max_size=3),
    seconds=st.none() | st.floats(0.2, 20),
    context=st.integers(20, 500),
)
@settings(deadline=None, max_examples=150)
def test_plans_equal_a_brute_force_search_for_most_frames_then_most_tiles(
    data: list[tuple[int, int]], seconds: float | None, context: int, tokenizer: PromptTokenizer
):
    infos = [] if seconds is None else [metadata(seconds)]
    bare = planned(tokenizer, 10**6, SMALL).length
    wishes = [wished_frames(info, SMALL) for info in infos]
    counts = range(min(8, infos[0].frames), wishes[0] + 1) if infos else [0]
    best = None
    for n in counts:
        for t in (1, 2, 4, 6, 8, 12):
            tiles = sum(tiles_for(choose_grid(*size, tile_size=32, max_tiles=t)) for size in data)
            if bare + 4 * (n + tiles) <= context:
                best = max(best or (0, 0), (n, t))
    if best is None:
        with pytest.raises(SampleError):
            planned(tokenizer, context, SMALL, data, infos)
        return
    chosen = planned(tokenizer, context, SMALL, data, infos)
    assert (sum(frames_of(chosen)), chosen.max_tiles) == best


def test_several_videos_share_the_room_and_each_keeps_its_least(tokenizer: PromptTokenizer):
    infos = [metadata(300), metadata(30), metadata(2)]
    chosen = planned(tokenizer, 16384, FLAT, infos=infos)
    assert frames_of(chosen)[2] == 8
    assert 8 <= frames_of(chosen)[1] < frames_of(chosen)[0]
    assert 16384 - 256 < chosen.length <= 16384
    assert chosen.degraded == ("frames",)


def test_what_was_given_up_is_named(tokenizer: PromptTokenizer):
    roomy = planned(tokenizer, 65536, FLAT, [UHD], [metadata(10)])
    assert (roomy.degraded, roomy.max_tiles) == ((), 12)
    no_tiles = planned(tokenizer, 6000, FLAT, [UHD], [metadata(10)])
    assert (no_tiles.degraded, frames_of(no_tiles)) == (("tiles",), (20,))
    neither = planned(tokenizer, 4096, FLAT, [UHD], [metadata(10)])
    assert neither.degraded == ("frames", "tiles")


@pytest.mark.parametrize("dialect", [RELEASED, TRAINING])
def test_a_context_of_exactly_the_wished_length_gives_up_nothing_and_one_token_less_does(
    dialect: Dialect, tokenizer: PromptTokenizer
):
    rules = VisualRules(dialect=dialect)
    wished = planned(tokenizer, 10**6, rules, [UHD, WIDE], [metadata(10)])
    assert planned(tokenizer, wished.length, rules, [UHD, WIDE], [metadata(10)]) == wished
    assert planned(tokenizer, wished.length - 1, rules, [UHD, WIDE], [metadata(10)]).degraded == ("tiles",)


def test_a_step_that_changes_no_grid_gives_up_nothing(tokenizer: PromptTokenizer):
    square = planned(tokenizer, 10_000, FLAT, [(448, 448)])
    assert (square.degraded, square.images[0].tiles) == ((), 1)


def test_timestamps_of_a_clip_stand_on_the_clock_of_its_file(tokenizer: PromptTokenizer):
    rules = VisualRules(tokens_per_tile=4)
    item = sample(videos=2, starts=[60.0, None])
    infos = [metadata(10), metadata(10)]
    chosen = plan(item, image_sizes=[], video_infos=infos, context_length=4096, rules=rules, tokenizer=tokenizer)
    clip, whole = (video.frames for video in chosen.videos)
    assert clip.timestamps == tuple(60 + index / 25 for index in clip.indices)
    assert whole.timestamps == tuple(index / 25 for index in whole.indices)


def test_the_training_dialect_prints_the_duration_of_the_clip(tokenizer: PromptTokenizer, raw_tokenizer):
    rules = VisualRules(tokens_per_tile=4, dialect=TRAINING)
    # A variable rate: frames over mean rate is not the duration.
    info = VideoMetadata(40, 10.0, 4.75, 64, 64, 0)
    item = sample(videos=1, starts=[3.0])
    chosen = plan(item, image_sizes=[], video_infos=[info], context_length=4096, rules=rules, tokenizer=tokenizer)
    ids = encode(item, chosen, rules=rules, tokenizer=tokenizer).input_ids
    assert "The first video of 4.75 seconds at" in raw_tokenizer.decode([int(i) for i in ids])


def test_tile_steps_start_at_the_limit_and_end_at_one():
    assert tile_steps(VisualRules(max_tiles=12)) == (12, 8, 6, 4, 2, 1)
    assert tile_steps(VisualRules(max_tiles=5)) == (5, 4, 2, 1)
    assert tile_steps(VisualRules(max_tiles=20)) == (20, 12, 8, 6, 4, 2, 1)
    assert tile_steps(VisualRules(max_tiles=1)) == (1,)


@pytest.mark.parametrize("field", ["tile_size", "tokens_per_tile", "min_tiles", "max_tiles", "min_frames", "fps"])
def test_impossible_rules_are_refused_by_name(field: str):
    with pytest.raises(EagleDataError, match=f"{field}=0"):
        replace(FLAT, **{field: 0})


def test_sizes_must_be_given_for_every_picture(tokenizer: PromptTokenizer):
    with pytest.raises(ValueError, match=r"a.jsonl:1: 1 images and 0 videos, but sizes of 0"):
        plan(sample(1), image_sizes=[], video_infos=[], context_length=100, rules=FLAT, tokenizer=tokenizer)


@pytest.mark.parametrize(("seconds", "wish"), [(10.0, 20), (10.3, 20), (10.49, 20), (10.5, 21), (0.1, 8)])
def test_a_wish_counts_whole_frames_only(seconds: float, wish: int):
    info = VideoMetadata(10_000, 10_000 / seconds, seconds, 64, 64, 0)
    assert wished_frames(info, VisualRules(fps=2.0, min_frames=8)) == wish


def test_an_image_gets_its_least_tiles_where_they_fit(tokenizer: PromptTokenizer):
    least = replace(FLAT, min_tiles=4)
    assert planned(tokenizer, 100_000, FLAT, [(448, 448)]).images[0].grid == (1, 1)
    assert math.prod(planned(tokenizer, 100_000, least, [(448, 448)]).images[0].grid) >= 4
    assert planned(tokenizer, 800, least, [(448, 448)]).images[0].tiles < 4


@pytest.mark.parametrize(
    "broken",
    [
        {"frames": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"duration": float("nan")},
        {"duration": float("inf")},
        {"duration": -1.0},
    ],
)
def test_a_video_of_which_no_frame_can_be_chosen_names_its_sample(broken: dict[str, float], tokenizer: PromptTokenizer):
    infos = [metadata(5.0), replace(metadata(5.0), **broken)]
    with pytest.raises(
        SampleError, match=r"a\.jsonl:1: video 2 has .*, of which none can be chosen; probe it again, or leave it out"
    ):
        planned(tokenizer, 100_000, SMALL, infos=infos)


def test_a_video_of_millions_of_frames_is_planned_without_tokenising_its_frames(
    tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
):
    rules = VisualRules(tile_size=32, tokens_per_tile=4)
    short, long = metadata(300.0), metadata(40_000.0)
    planned(tokenizer, 4000, rules, infos=[short])  # has the table made
    counted = 0
    encode_segments = PromptTokenizer.encode

    def counting(self: PromptTokenizer, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        nonlocal counted
        counted += 1
        return encode_segments(self, segments)

    monkeypatch.setattr(PromptTokenizer, "encode", counting)
    assert long.frames == 10**6
    chosen = planned(tokenizer, 4000, rules, infos=[long])
    assert counted < 50
    assert 100 < chosen.frames == len(chosen.videos[0].frames)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "<image-1><video-1><video-1>",
            r"mentions 2 video placeholder\(s\) \(<video-1>, <video-1>\) but 1 video\(s\) are attached",
        ),
        ("<image-9><video-1>", r"mentions 1 image placeholder\(s\) \(<image-9>\) but 1 image\(s\) are attached"),
        ("<image-1><video-1><document-1>", r"\(<document-1>\) but 0 document\(s\) are attached; attach them"),
        ("<image-1>", r"mentions 0 video placeholder\(s\) but 1 video\(s\) are attached; mention each of 1\.\.1 exactly once"),
    ],
)
def test_a_sample_whose_text_and_media_disagree_is_refused_when_planned_and_when_encoded(
    text: str, words: str, tokenizer: PromptTokenizer
):
    good = sample(1, 1)
    bad = replace(good, messages=(Message("user", text), Message("assistant", "<image-7>")))
    whole = plan(good, image_sizes=[(32, 32)], video_infos=[metadata(5.0)], context_length=500, rules=SMALL, tokenizer=tokenizer)
    with pytest.raises(SampleError, match=words) as planning:
        plan(bad, image_sizes=[(32, 32)], video_infos=[metadata(5.0)], context_length=500, rules=SMALL, tokenizer=tokenizer)
    with pytest.raises(SampleError, match=words) as encoding:
        encode(bad, whole, rules=SMALL, tokenizer=tokenizer)
    assert planning.value.kind == encoding.value.kind == "placeholder mismatch"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_tiles": 13}, "min_tiles=13 is above max_tiles=12"),
        ({"tile_steps": (4, 0)}, "tile_steps has 0"),
        ({"tile_steps": (3.5,)}, "tile_steps has 3.5"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": -1.0}, "fps=-1.0"),
    ],
)
def test_rules_that_cannot_be_are_refused(values: dict[str, object], words: str):
    with pytest.raises(EagleDataError, match=words):
        VisualRules(**values)  # pyright: ignore[reportArgumentType]
