"""What the model saw equals what the processor made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.errors import MediaError
from eagle_data.tiling import choose_grid
from eagle_serve import Checkpoint, ContextOverflowError, SeenPicture, SeenVideo, VisualSettings, prepare
from eagle_serve.demo_panel import panel_html
from eagle_serve.seen import LoadedMedia, read_seen
from eagle_serve.seen_text import seen_lines
from hypothesis import given, settings
from hypothesis import strategies as st


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": item} if isinstance(item, str) else item for item in content]}


@pytest.fixture
def mixed(media: Path, picture: Callable[..., Any]) -> list[dict[str, Any]]:
    """A video before an image in one turn, and another image in a later one."""
    clip = {"type": "video", "video": str(media / "clip.mp4")}
    wide = {"type": "image", "image": str(media / "wide.png")}
    later = {"type": "image", "image": picture(40, 30)}
    return [
        _user(clip, "What?", wide),
        {"role": "assistant", "content": "a word"},
        _user(later),
    ]


def _unnormalised(processor: Any, tiles: np.ndarray) -> np.ndarray:
    return ((np.asarray(tiles).transpose(0, 2, 3, 1) * 0.5 + 0.5) * 255).round().astype(np.uint8)


def test_tiles_frames_times_and_tokens_are_those_of_the_processors_own_call(checkpoint: Checkpoint, mixed: list[Any]):
    processor = checkpoint.processor
    alone = processor.apply_chat_template(mixed, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    _, _, about = processor.process_vision_info(mixed, return_video_kwargs=True)
    prompt = prepare(checkpoint, mixed)
    for key in ("input_ids", "pixel_values", "image_sizes"):
        assert np.array_equal(prompt.inputs[key], alone[key]), key

    video, wide, last = prompt.seen.media
    assert isinstance(video, SeenVideo)
    assert isinstance(wide, SeenPicture)
    assert isinstance(last, SeenPicture)
    assert [frame.timestamp for frame in video.frames] == about["timestamps"][0]
    assert video.fps == about["fps"][0]
    assert (video.name, video.width, video.height) == ("clip.mp4", 64, 48)
    assert (wide.name, wide.width, wide.height, wide.grid, wide.thumbnail) == ("wide.png", 96, 32, (3, 1), True)
    assert last.name == "media 3"
    in_order = np.concatenate([*(frame.tiles for frame in video.frames), wide.tiles, last.tiles])
    assert np.array_equal(in_order, _unnormalised(processor, alone["pixel_values"]))
    context = int((alone["input_ids"] == processor.image_token_id).sum())
    assert prompt.seen.visual_tokens == context == video.tokens + wide.tokens + last.tokens
    assert prompt.seen.total_tokens == alone["input_ids"].shape[1] == prompt.tokens


def test_a_tile_shows_the_pixels_of_its_place_in_the_picture(checkpoint: Checkpoint, media: Path):
    from PIL import Image

    prompt = prepare(checkpoint, [_user({"type": "image", "image": str(media / "wide.png")})])
    [wide] = prompt.seen.media
    assert isinstance(wide, SeenPicture)
    original = np.asarray(Image.open(media / "wide.png"))
    assert np.array_equal(np.concatenate(list(wide.tiles[:3]), axis=1), original)


@given(width=st.integers(1, 300), height=st.integers(1, 300), most=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_an_image_of_any_size_is_seen_with_its_tiles_and_tokens(
    checkpoint: Checkpoint, picture: Callable[..., Any], width: int, height: int, most: int
):
    messages = [_user({"type": "image", "image": picture(width, height)}, "What?")]
    prompt = prepare(checkpoint, messages, VisualSettings(max_tiles=most))
    [seen] = prompt.seen.media
    assert isinstance(seen, SeenPicture)
    assert seen.grid == choose_grid(width, height, tile_size=32, max_tiles=most)
    assert seen.grid[0] * seen.grid[1] <= most
    assert len(seen.tiles) == checkpoint.processor.image_processor.tiles_of(width, height, max_dynamic_tiles=most)
    assert seen.thumbnail == (len(seen.tiles) > 1)
    assert seen.tokens == len(seen.tiles) * checkpoint.processor.tokens_per_tile


def test_sampling_settings_reach_the_video_and_yield_to_the_items_own(checkpoint: Checkpoint, media: Path):
    def frames(settings: VisualSettings, **own: Any) -> int:
        [video] = prepare(checkpoint, [_user({"type": "video", "video": str(media / "clip.mp4"), **own})], settings).seen.media
        assert isinstance(video, SeenVideo)
        return len(video.frames)

    assert frames(VisualSettings()) == 6  # 3 s at the released 2 fps
    assert frames(VisualSettings(fps=4)) == 12
    assert frames(VisualSettings(fps=4, max_frames=4)) == 4
    assert frames(VisualSettings(fps=4), fps=2) == 6
    assert frames(VisualSettings(fps=4, max_frames=4), nframes=8) == 8


def test_an_animation_is_a_video_and_a_list_of_pictures_has_no_times(
    checkpoint: Checkpoint, media: Path, picture: Callable[..., Any]
):
    pictures = [picture(32, 32, seed) for seed in range(4)]
    loop_bytes = (media / "loop.gif").read_bytes()
    prompt = prepare(
        checkpoint,
        [
            _user(
                {"type": "video", "video": loop_bytes, "name": "loop"},
                {"type": "video", "video": pictures},
            )
        ],
    )
    loop, listed = prompt.seen.media
    assert isinstance(loop, SeenVideo)
    assert isinstance(listed, SeenVideo)
    assert loop.name == "loop"
    assert [frame.timestamp for frame in listed.frames] == [None] * 4
    assert "frame 4" in panel_html(prompt.seen)


def test_text_alone_has_no_visual_tokens(checkpoint: Checkpoint):
    seen = prepare(checkpoint, [_user("What is this?")]).seen
    assert seen.media == ()
    assert seen.visual_tokens == 0
    assert seen.text_tokens == seen.total_tokens > 0


def test_a_prompt_too_long_for_the_context_says_all_three_counts(checkpoint: Checkpoint, picture: Callable[..., Any]):
    with pytest.raises(ContextOverflowError) as caught:
        prepare(checkpoint, [_user({"type": "image", "image": picture(96, 64)}, "word " * 700)])
    error = caught.value
    assert error.visual_tokens == 7 * 4
    assert error.visual_tokens + error.text_tokens >= error.context_length == 640
    for count in (error.visual_tokens, error.text_tokens, error.visual_tokens + error.text_tokens, error.context_length):
        assert str(count) in str(error)


def test_media_that_cannot_be_read_are_named(checkpoint: Checkpoint, media: Path):
    broken = (media / "cut.png").read_bytes()
    with pytest.raises(MediaError, match=r"holiday\.png"):
        prepare(checkpoint, [_user({"type": "image", "image": broken, "name": "holiday.png"})])


def test_inputs_that_do_not_belong_to_the_media_are_refused(checkpoint: Checkpoint, mixed: list[Any]):
    inputs = prepare(checkpoint, mixed).inputs
    one = [LoadedMedia("image", "a")]
    with pytest.raises(ValueError, match="8 pictures and frames, but 1"):
        read_seen(checkpoint.processor, inputs, one, images_kwargs={}, context_length=640)
    lost = {**inputs, "pixel_values": inputs["pixel_values"][:-1]}
    media = [LoadedMedia("video", "v", 6), LoadedMedia("image", "a"), LoadedMedia("image", "b")]
    with pytest.raises(ValueError, match="room for"):
        read_seen(checkpoint.processor, lost, media, images_kwargs={}, context_length=640)


def test_the_report_and_the_panel_name_every_picture_frame_and_count(checkpoint: Checkpoint, mixed: list[Any]):
    mixed[0]["content"][2]["name"] = "<b>wide</b>.png"
    seen = prepare(checkpoint, mixed).seen
    lines = list(seen_lines(seen))
    assert lines[0].startswith("1. clip.mp4: 64 × 48 pixels, 6 frames at 2.00 fps (0.00, ")
    assert lines[1] == "2. <b>wide</b>.png: 96 × 32 pixels, 3 × 1 tiles + thumbnail, 16 tokens"
    assert lines[-1].startswith(f"{seen.total_tokens} tokens: {seen.visual_tokens} visual + {seen.text_tokens} text")
    html = panel_html(seen)
    tiles = sum(len(item.tiles) if isinstance(item, SeenPicture) else len(item.frames) for item in seen.media)
    assert html.count("<img ") == tiles
    assert "<b>wide</b>" not in html
    assert "&lt;b&gt;wide" in html
    assert html.count(" s</figcaption>") == 6
