"""Prompts byte for byte, media in order, and the files a processor writes."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from eagle_model import Eagle2_5_VLConfig, Eagle2_5_VLProcessor, add_special_tokens, token_id
from PIL import Image
from transformers import Qwen2Tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
END = "<|im_end|>\n<|im_start|>assistant\n"


def block(tokens: int) -> str:
    return "<img>" + "<IMG_CONTEXT>" * tokens + "</img>"


def picture(width: int = 32, height: int = 32, shade: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (shade, 10, 200))


def ask(*items: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]
    return [{"role": "user", "content": content}]


def image(width: int = 32, height: int = 32, **options: Any) -> dict[str, Any]:
    return {"type": "image", "image": picture(width, height), **options}


def run(processor: Any, messages: Any, **kwargs: Any) -> Any:
    """The documented route: template, media, call."""
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos, video_kwargs = processor.process_vision_info(messages, return_video_kwargs=True)
    return processor(text=[text], images=images, videos=videos, return_tensors="pt", videos_kwargs=video_kwargs, **kwargs)


def prompt_of(processor: Any, inputs: Any, row: int = 0) -> str:
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: Any) -> str:
    """Ten seconds at 30 frames per second, as in upstream appendix A.1."""
    import av

    path = str(tmp_path_factory.mktemp("clip") / "clip.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(300):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_one_image_reads_as_released(released_processor: Any):
    inputs = run(released_processor, ask(image(640, 480), "Describe it."))
    expected = f"{SYSTEM}<|im_start|>user\n<image 1>{block(3328)}Describe it.{END}"
    assert prompt_of(released_processor, inputs) == expected
    assert inputs["pixel_values"].shape == (13, 3, 448, 448)
    assert inputs["image_sizes"].tolist() == [[480, 640]]


def test_two_images_read_as_released(released_processor: Any):
    inputs = run(released_processor, ask(image(448, 448), image(1920, 1080), "Compare."))
    expected = f"{SYSTEM}<|im_start|>user\n<image 1>{block(256)}<image 2>{block(2304)}Compare.{END}"
    assert prompt_of(released_processor, inputs) == expected


def test_a_video_reads_as_released_with_rate_and_times(released_processor: Any, clip: str):
    inputs = run(released_processor, ask({"type": "video", "video": clip}, "What happens?"))
    text = prompt_of(released_processor, inputs)
    start = (
        f"{SYSTEM}<|im_start|>user\nThe first video sampled with 2.00 fps: Frame 1 sample at 0.00s: {block(256)}"
        f"Frame 2 sample at 0.53s: {block(256)}Frame 3 sample at 1.03s: {block(256)}Frame 4 sample at 1.57s: "
    )
    assert text.startswith(start)
    assert text.endswith(f"Frame 20 sample at 9.97s: {block(256)}What happens?{END}")
    assert inputs["pixel_values"].shape == (20, 3, 448, 448)
    shades = ((inputs["pixel_values"].mean((1, 2, 3)) * 0.5 + 0.5) * 255).round()
    for index, frame in ((0, 0), (1, 16), (2, 31), (19, 299)):
        assert abs(float(shades[index]) - frame % 256) <= 3


def test_a_clip_of_a_video_keeps_the_clock_of_the_file(processor: Any, clip: str):
    item = {"type": "video", "video": f"file://{clip}", "nframes": 4, "video_start": 5.0, "video_end": 7.0}
    text = prompt_of(processor, run(processor, ask(item)))
    assert f"sampled with 2.00 fps: Frame 1 sample at 5.00s: {block(4)}" in text
    assert f"Frame 4 sample at 6.97s: {block(4)}" in text


def test_a_video_without_times_prints_none(processor: Any):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    expected = f"The first video: Frame 1: {block(4)}Frame 2: {block(4)}?"
    assert prompt_of(processor, processor(text="<video-1>?", videos=[frames], return_tensors="pt")) == expected
    unknown = {"fps": None, "timestamps": [[-1, -1]]}
    inputs = processor(text="<video-1>?", videos=[frames], videos_kwargs=unknown, return_tensors="pt")
    assert prompt_of(processor, inputs) == expected


def test_a_list_of_pictures_is_a_video_without_times_and_of_even_length(processor: Any):
    item = {"type": "video", "video": [picture(), picture(), picture()]}
    text = prompt_of(processor, run(processor, ask(item)))
    frames = "".join(f"Frame {i}: {block(4)}" for i in range(1, 5))
    assert f"<|im_start|>user\nThe first video sampled with 2.00 fps: {frames}<|im_end|>" in text


def test_the_eleventh_video_is_counted_in_figures(processor: Any):
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    text = "".join(f"<video-{k}>" for k in range(1, 13))
    prompt = prompt_of(processor, processor(text=text, videos=[frames] * 12, return_tensors="pt"))
    assert "The tenth video: Frame 1: " in prompt
    assert "The 11th video: Frame 1: " in prompt
    assert "The 12th video: Frame 1: " in prompt


def test_interleaved_media_keep_the_order_of_the_text_in_the_pixels(processor: Any):
    frames = np.full((2, 32, 32, 3), 128, np.uint8)
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    messages = ask(
        "a", {"type": "image", "image": red}, "b", {"type": "video", "video": list(frames)}, {"type": "image", "image": blue}
    )
    inputs = run(processor, messages)
    video = f"The first video sampled with 2.00 fps: Frame 1: {block(4)}Frame 2: {block(4)}"
    assert f"user\na<image 1>{block(4)}b{video}<image 2>{block(4)}<|im_end|>" in prompt_of(processor, inputs)
    channels = inputs["pixel_values"].mean((2, 3))
    assert channels[0].tolist() == [1.0, -1.0, -1.0]
    assert channels[3].tolist() == [-1.0, -1.0, 1.0]
    assert abs(float(channels[1, 0])) < 0.01


def test_media_are_counted_over_all_turns(processor: Any):
    messages = [
        *ask(image(), "One?"),
        {"role": "assistant", "content": "Yes."},
        *ask(image(), "Two?"),
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == (
        f"{SYSTEM}<|im_start|>user\n<image-1>One?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        f"<|im_start|>user\n<image-2>Two?{END}"
    )
    assert len(run(processor, messages)["pixel_values"]) == 2


def test_a_given_system_turn_and_old_role_names_are_rendered(processor: Any):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "human", "content": "Hello"},
        {"role": "gpt", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "observation", "content": "x"},
    ]
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
        "<|im_start|>observation\nx<|im_end|>\n"
    )


def test_vision_ids_are_added_on_request(processor: Any):
    text = processor.apply_chat_template(ask(image(), {"type": "video", "video": "a.mp4"}), add_vision_id=True)
    assert "<image 1><image-1><video 1><video-1>" in text


def test_the_training_dialect_is_an_option(processor: Any, tokenizer: Any):
    training = Eagle2_5_VLProcessor(processor.image_processor, tokenizer, tokens_per_tile=4, dialect="training")
    text = prompt_of(training, run(training, ask(image(), "What?")))
    assert text == (
        "<|im_start|>system\nYou are an AI assistant whose name is Eagle-Next.<|im_end|>\n"
        f"<|im_start|>user\n{block(4)}\nWhat?{END}"
    )
    two = prompt_of(training, run(training, ask(image(), image(), "What?")))
    assert f"<image 1>{block(4)}\n<image 2>{block(4)}\nWhat?" in two
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    video = prompt_of(training, training(text="<video-1>", videos=[frames], videos_kwargs={"fps": [2.4]}, return_tensors="pt"))
    blocks = "".join(f"Frame {i}: {block(4)}" for i in range(1, 25))
    assert video == f"The first video of 10.00 seconds at 2.40 fps: {blocks}\n"  # upstream appendix A.1
    with pytest.raises(ValueError, match="unknown prompt dialect"):
        Eagle2_5_VLProcessor(processor.image_processor, tokenizer, dialect="other")


def test_tokenizing_through_the_template_equals_the_documented_route(processor: Any):
    messages = ask(image(64, 32), "What?")
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    route = run(processor, messages)
    assert inputs.keys() == route.keys()
    assert all(torch.equal(inputs[key], route[key]) for key in route)
    only_ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_tensors="pt")
    assert torch.equal(only_ids, route["input_ids"])


def test_batches_are_padded_on_the_left_and_media_go_to_their_prompt(processor: Any):
    conversations = [ask("Hi"), ask(image(64, 32), image(), "What?"), ask(image(), "This?")]
    images, _ = processor.process_vision_info(conversations)
    texts = processor.apply_chat_template(conversations, add_generation_prompt=True)
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    assert mask[:, -1].all()
    assert not mask[0, 0]
    assert f"<image 1>{block(12)}<image 2>{block(4)}What?" in prompt_of(processor, inputs, 1)
    assert f"user\n<image 1>{block(4)}This?" in prompt_of(processor, inputs, 2)
    nested = processor(text=texts, images=[[], images[:2], images[2:]], padding=True, return_tensors="pt")
    assert torch.equal(nested["pixel_values"], inputs["pixel_values"])
    right = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    assert right["attention_mask"][:, 0].all()


def test_tile_options_reach_images_and_videos_apart(processor: Any):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    arguments = {"text": "<image-1><video-1>", "images": [picture(96, 64)], "videos": [frames], "return_tensors": "pt"}
    assert len(processor(**arguments)["pixel_values"]) == 7 + 2
    few = processor(**arguments, images_kwargs={"max_dynamic_tiles": 4, "use_thumbnail": False})
    assert len(few["pixel_values"]) == 4 + 2
    assert len(processor(**arguments, max_dynamic_tiles=1)["pixel_values"]) == 1 + 2
    many = processor(**arguments, videos_kwargs={"max_dynamic_tiles": 4, "use_thumbnail": False})
    assert len(many["pixel_values"]) == 7 + 8


def test_images_load_from_every_documented_source(processor: Any, tmp_path: Any):
    import base64

    path = tmp_path / "a.png"
    picture().save(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    sources = [str(path), f"file://{path}", f"data:image/png;base64,{encoded}", picture()]
    items = [{"type": "image", "image": source} for source in sources]
    items += [{"type": "image_url", "image_url": str(path)}, {"type": "image_url", "image_url": {"url": str(path)}}]
    images, videos = processor.process_vision_info(ask(*items))
    assert videos is None
    assert all(np.array_equal(np.asarray(loaded), np.asarray(picture())) for loaded in images)
    (enlarged,), _ = processor.process_vision_info(ask(image(20, 10, scale_factor=2)))
    assert enlarged.size == (40, 20)


def test_text_alone_has_no_pixels_and_images_alone_have_no_text(processor: Any):
    assert set(processor(text="Hello", return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(images=[picture()])) == {"pixel_values", "image_sizes"}
    unpadded = processor(text=["Hello", "Hello there"])
    assert [type(ids) for ids in unpadded["input_ids"]] == [list, list]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "<image-1>"}, "mention 1 image\\(s\\) but 0 were given"),
        ({"text": "no", "images": [picture()]}, "mention 0 image\\(s\\) but 1 were given"),
        ({"text": "<image-2>", "images": [picture()]}, "names images \\[2\\]"),
        ({"text": "<image-1><image-1>", "images": [picture()] * 2}, "names images \\[1, 1\\]"),
        (
            {"text": "<video-1>", "videos": [np.zeros((1, 4, 4, 3), np.uint8)], "videos_kwargs": {"fps": [1.0, 2.0]}},
            "2 entries for 1",
        ),
        (
            {"text": "<video-1>", "videos": [np.zeros((2, 4, 4, 3), np.uint8)], "videos_kwargs": {"timestamps": [[0.0]]}},
            "2 frames but 1 timestamps",
        ),
        ({"text": "<image-1>", "images": [picture()], "images_kwargs": {"tiles": 1}}, "unknown image option 'tiles'"),
        ({"text": "a", "audio": "x"}, "no audio"),
        ({}, "needs text, images or videos"),
        ({"text": "<image-1>", "images": [picture()], "truncation": True, "max_length": 3}, "truncation cut prompt 0"),
    ],
)
def test_text_and_media_that_do_not_match_are_errors(processor: Any, arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        processor(**arguments)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "image"}, "has no picture"),
        ({"type": "video"}, "has no video"),
        ({"type": "video", "video": []}, "is empty"),
        ({"type": "video", "video": "a.mp4", "fps": 1, "nframes": 2}, "either 'fps' or 'nframes'"),
        ({"type": "video", "video": "/nowhere/a.mp4"}, "no such file"),
        ({"type": "image", "image": "/nowhere/a.png"}, "no such file"),
    ],
)
def test_media_items_that_cannot_be_read_are_errors(processor: Any, item: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        processor.process_vision_info(ask(item))


def test_ids_are_found_by_name_and_a_missing_token_is_an_error(processor: Any, tokenizer: Any):
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") != 151667
    bare = Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    with pytest.raises(ValueError, match="no token '<IMG_CONTEXT>'"):
        Eagle2_5_VLProcessor(processor.image_processor, bare)


def test_on_the_vocabulary_of_qwen_the_added_tokens_get_the_released_ids():
    """Upstream section 1.2: 151665 ids before, counted here only by their number, then Eagle's tokens in this order."""
    qwen = Qwen2Tokenizer(vocab={f"t{i}": i for i in range(151664)} | {"<|endoftext|>": 151664}, merges=[])
    assert len(qwen) == 151665
    add_special_tokens(qwen)
    names = (
        "<img>",
        "</img>",
        "<IMG_CONTEXT>",
        "<quad>",
        "</quad>",
        "<ref>",
        "</ref>",
        "<box>",
        "</box>",
        "<interval>",
        "</interval>",
    )
    assert {name: token_id(qwen, name) for name in names} == {name: 151665 + i for i, name in enumerate(names)}
    assert token_id(qwen) == 151667 == Eagle2_5_VLConfig().image_token_index


def test_a_processor_for_a_config_checks_the_token_id(make_config: Any, tokenizer: Any):
    config = make_config()
    made = Eagle2_5_VLProcessor.for_config(config, tokenizer)
    assert (made.tokens_per_tile, made.image_processor.tile_size) == (4, 32)
    config.image_token_index = 3
    with pytest.raises(ValueError, match="image_token_index is 3"):
        Eagle2_5_VLProcessor.for_config(config, tokenizer)


def test_saved_files_have_the_released_layout_and_load_back(processor: Any, tmp_path: Any):
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "Eagle2_5_VLProcessor"
    assert saved["tokens_per_tile"] == 4
    assert "image_processor" not in saved
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"height": 32, "width": 32}
    again = Eagle2_5_VLProcessor.from_pretrained(tmp_path)
    assert again.chat_template == processor.chat_template
    messages = ask(image(64, 32), "What?")
    first, second = run(processor, messages), run(again, messages)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_and_inference_tokenise_the_same_prompt_to_the_same_ids(processor: Any, tokenizer: Any):
    """eagle_data prepares training samples without transformers; the model must see the same tokens at inference."""
    from eagle_data.chat import render
    from eagle_data.dialect import RELEASED
    from eagle_data.samples import Message
    from eagle_data.tokens import PromptTokenizer

    messages = [Message("user", "<image-1>Which digits, 12 or 21?"), Message("assistant", "They are 2 and 1.")]
    segments = render(messages, default_system=RELEASED.default_system, media=lambda kind, number: RELEASED.image(number, 12, 1))
    ids, supervised = PromptTokenizer(tokenizer.backend_tokenizer).encode(segments)
    chat = [
        {"role": "user", "content": [image(64, 32), {"type": "text", "text": "Which digits, 12 or 21?"}]},
        {"role": "assistant", "content": "They are 2 and 1."},
    ]
    pictures, _ = processor.process_vision_info(chat)
    inputs = processor(text=processor.apply_chat_template(chat), images=pictures)
    assert inputs["input_ids"][0] == ids
    prompt = processor(text=processor.apply_chat_template(chat[:1], add_generation_prompt=True), images=pictures)
    assert prompt["input_ids"][0] == ids[: supervised.index(True)]


def test_a_checkpoint_remembers_the_rate_its_videos_were_sampled_at(processor: Any, clip: str, tmp_path: Any):
    def times(with_processor: Any, **item: Any) -> list[float]:
        messages = [{"role": "user", "content": [{"type": "video", "video": clip, **item}]}]
        _, _, about = with_processor.process_vision_info(messages, return_video_kwargs=True)
        return about["timestamps"][0]

    slower = copy.copy(processor)
    slower.video_fps = 1.0
    slower.save_pretrained(tmp_path / "saved")
    again = Eagle2_5_VLProcessor.from_pretrained(tmp_path / "saved")
    assert len(times(again)) == len(times(processor)) // 2
    assert times(again, fps=2.0) == times(processor)
