"""A record that names media which nothing reads is refused with the key to use; metadata beside media that are read is not."""

from __future__ import annotations

from typing import Any

import pytest
from eagle_data.annotations import parse_record
from eagle_data.errors import SampleError
from eagle_data.media_keys import UNREAD, names_media
from hypothesis import given, settings
from hypothesis import strategies as st

TALK = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
VALID = [
    {"conversations": TALK},
    {"conversations": TALK, "image": "a/cat.png"},
    {"conversations": TALK, "images": ["a/cat.png", "b/dog.png"]},
    {"conversations": TALK, "video": {"video": "v.mp4", "start_time": 1, "end_time": 2}},
    {"conversations": TALK, "document": {"document": "p.pdf", "pages": [2]}},
    {"conversations": TALK, "data": [{"type": "image", "image_list": ["a/cat.png"]}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}]},
            {"role": "assistant", "content": "A cat."},
        ]
    },
    {"query": "What is it?", "response": "A cat.", "images": ["a/cat.png"]},
    {"instruction": "What is it?", "output": "A cat."},
]
UNREAD_KEYS = [
    *("audio", "audios", "audio_path", "speech", "sounds", "wav", "mp3_file"),
    *("img", "imgs", "image_path", "imagePath", "images_path", "image_url", "img_url_list", "left_image", "Image", "image_2"),
    *("image_base64", "pictures", "photo", "screenshot", "imagefile", "image_file_name", "jpg"),
    *("video_path", "videos_path", "videoFile", "video_url", "mp4", "clip_video", "pdf", "document_path", "PDFFile"),
    *("media", "attachments"),
]
METADATA = {
    **{"id": "a.png", "source": "films/a.mp4", "score": 0.5, "data_source": "coco", "question_id": "x/a.jpg"},
    **{
        "image_id": "0017",
        "image_size": [640, 480],
        "image_width_list": [3],
        "num_images": 2,
        "has_audio": True,
        "images_read": 1,
    },
    **{
        "video_id": "9x",
        "video_duration": 12.5,
        "audio_transcript": "hello",
        "document_type": "letter",
        "image_caption": "a cat",
    },
    **{
        "documents_found": "3",
        "source_documents": ["A text that was found."],
        "url": "https://example.org/page",
        "pages": [3, 4],
    },
    **{"frames": [0, 10], "page": 7, "clip": [0.5, 2.0], "file": "part-3.jsonl", "image_url": None, "audio": "", "speech": []},
    **{"objects": {"bbox": [[1, 2, 3, 4]]}, "tools": "[]", "model": "m", "name": "a cat", "start": 3, "end_time": 4},
}


def parse(record: Any):
    return parse_record(record, dataset="d", where="a.jsonl:1")


def refusal(record: Any) -> SampleError:
    with pytest.raises(SampleError) as caught:
        parse(record)
    return caught.value


values = st.sampled_from(["new/x.jpg", "new/x.mp4", "new/x.pdf", "https://example.org/x.wav?s=1"])


@given(
    record=st.sampled_from(VALID),
    key=st.sampled_from(UNREAD_KEYS),
    value=values | st.lists(values, min_size=1, max_size=3) | values.map(lambda path: {"path": path}),
)
@settings(deadline=None, max_examples=300)
def test_a_valid_record_with_media_under_a_key_that_is_not_read_is_refused(record: dict[str, Any], key: str, value: Any):
    assert parse(record).messages
    error = refusal({**record, key: value})
    assert error.kind == UNREAD
    assert f'"{key}" names media but is not read' in error.reason
    assert any(word in error.reason for word in ("write", "sound is not read"))


@given(record=st.sampled_from(VALID), chosen=st.sets(st.sampled_from(sorted(METADATA))))
@settings(deadline=None, max_examples=200)
def test_metadata_changes_nothing(record: dict[str, Any], chosen: set[str]):
    read = {"video": ("start", "end_time"), "document": ("pages",)}  # these are part of the sample beside their medium
    chosen = {key for key in chosen if not any(medium in record and key in keys for medium, keys in read.items())}
    assert parse({**{key: METADATA[key] for key in chosen}, **record}) == parse(record)


@pytest.mark.parametrize("key", ["file", "files", "file_name", "path", "url", "frames", "page", "clips"])
def test_a_file_without_a_kind_counts_where_it_is_named_like_media_and_nothing_is_read(key: str):
    assert refusal({"conversations": TALK, key: "films/a.MP4"}).kind == UNREAD
    assert refusal({"conversations": TALK, key: ["x", "data:image/png;base64,AAAA"]}).kind == UNREAD
    assert parse({"conversations": TALK, key: "films/list.txt"}).videos == ()
    assert len(parse({"conversations": TALK, key: "films/a.mp4", "video": "b.mp4"}).videos) == 1


def test_a_key_that_only_names_what_was_read_once_more_is_metadata():
    record = {"conversations": TALK, "image": "coco/train/1.jpg"}
    for again in ("1.jpg", "train/1.jpg", "https://example.org/coco/train/1.jpg", ["1.jpg"]):
        assert parse({**record, "image_path": again}) == parse(record)
    assert refusal({**record, "image_path": "2.jpg"}).kind == UNREAD
    assert refusal({**record, "right_image": "coco/train/1.jpg"}).kind == UNREAD
    assert refusal({**record, "image_path": ["1.jpg", "2.jpg"]}).kind == UNREAD


def test_the_mend_names_the_key_of_the_same_kind():
    assert 'write "image" or "images" instead' in refusal({"conversations": TALK, "img": "a.png"}).reason
    assert 'write "video" or "videos" instead' in refusal({"conversations": TALK, "video_path": "a.mp4"}).reason
    assert 'write "document" or "documents"' in refusal({"conversations": TALK, "pdf": "a"}).reason
    assert 'write "image", "video" or "document"' in refusal({"conversations": TALK, "file": "a.png"}).reason
    assert "leave the record out" in refusal({"conversations": TALK, "audio": "a.wav"}).reason


@pytest.mark.parametrize("key", ["image", "videos", "audio", "img_path", "document"])
def test_media_inside_a_turn_are_refused(key: str):
    error = refusal({"conversations": [{**TALK[0], key: "a.png"}, TALK[1]]})
    assert (error.kind, f'turn 1 has media under "{key}"' in error.reason) == (UNREAD, True)
    assert parse({"conversations": [{**TALK[0], key: None, "id": "a.png"}, TALK[1]]}).images == ()


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text}, TALK[1]], **more}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("<audio>\nWhat do you hear?", "placeholder mismatch", "mentions <audio> but none is attached; sound is not read"),
        ("<speech>Say it again.", "placeholder mismatch", "<speech>"),
        ("Listen:\n<audio>\nWell?", "placeholder mismatch", "<audio>"),
        ("<document>\nSum it up.", "placeholder mismatch", '<document> but none is attached; name it under "document"'),
        ("Picture 1: <img>cats/1.jpg</img>\nWhat?", UNREAD, "'<img>cats/1.jpg</img>' names a file inside the text"),
        ("<img>https://example.org/1.png</img>", UNREAD, "names a file"),
        ("<AUDIO>a.wav</AUDIO> What?", UNREAD, "names a file"),
    ],
)
def test_a_text_that_mentions_what_is_not_attached_is_refused(text: str, kind: str, words: str):
    error = refusal(asked(text))
    assert (error.kind, words in error.reason) == (kind, True), error.reason


@pytest.mark.parametrize(
    "text",
    [
        "What does the <audio> element of HTML do?",
        "<document>\nA letter.\n</document>\nSum it up.",
        "Use <document> and <speech> as tags.",
        "<img>no path</img> and <img>bold</img>",
        'a <audio controls src="a.wav"></audio> b',
    ],
)
def test_words_of_markup_stay_text(text: str):
    assert parse(asked(text)).messages[0].text == text


def test_what_an_answer_says_of_sound_is_text():
    answer = {"from": "gpt", "value": "<audio>\n<document>"}
    assert parse({"conversations": [TALK[0], answer]}).messages[1].text == "<audio>\n<document>"


def test_boxes_that_stand_beside_the_text_are_refused_where_the_text_points_at_them():
    turns = [TALK[0], {"from": "gpt", "value": "<ref-object><bbox>"}]
    boxes = {"ref": ["a cat"], "bbox": [[1, 2, 3, 4]]}
    error = refusal({"conversations": turns, "image": "a.png", "objects": boxes})
    assert 'boxes that stand under "objects"' in error.reason
    assert parse({"conversations": TALK, "image": "a.png", "objects": boxes}).images
    assert parse({"conversations": turns, "image": "a.png"}).messages[1].text == "<ref-object><bbox>"


@pytest.mark.parametrize(
    "entry", [{"type": "text", "image_list": ["a.png"]}, {"type": "image", "image_list": ["a"], "video_list": ["b"]}]
)
def test_a_second_list_in_an_entry_of_data_is_refused(entry: dict[str, Any]):
    assert '"data" must be a list of' in refusal({"conversations": TALK, "data": [entry]}).reason
    empty = {**entry, "image_list": ["a"], "type": "image", "video_list": []}
    assert len(parse({"conversations": TALK, "data": [empty]}).images) == 1


@pytest.mark.parametrize(("column", "expected"), [("image", True), ("frames", True), ("jpg", True), ("embedding", False)])
def test_columns_of_bytes_hold_media_by_their_name(column: str, expected: bool):
    assert names_media(column) is expected
