"""Annotation lines: both spellings give the same samples, and every bad line is named without stopping the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eagle_data.annotations import Reject, parse_record, read_annotations
from eagle_data.errors import SampleError
from eagle_data.samples import ImageRef, Message, Sample, VideoRef
from hypothesis import given, settings
from hypothesis import strategies as st

TALK = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]


def parse(record: Any, root: str = "") -> Sample:
    return parse_record(record, dataset="d", where="a.jsonl:1", root=root)


def refusal(record: Any) -> SampleError:
    with pytest.raises(SampleError) as caught:
        parse(record)
    return caught.value


@pytest.mark.parametrize(
    "media",
    [
        {"image": "a.png"},
        {"image": ["a.png"]},
        {"image": {"image": "a.png"}},
        {"data": [{"type": "image", "image_list": ["a.png"]}]},
        {"data": [{"type": "image", "image_list": [{"path": "a.png"}]}, {"type": "text"}]},
    ],
)
def test_every_spelling_of_an_image_gives_the_same_sample(media: dict[str, Any]):
    sample = parse({"conversations": TALK, **media}, root="/media")
    assert sample.images == (ImageRef("/media/a.png"),)
    assert sample.messages[0] == Message("user", "<image-1>What is it?")


@pytest.mark.parametrize(
    "item",
    [{"video": "v.mp4", "start_time": 1, "end_time": 2.5}, {"path": "v.mp4", "start": 1, "end": 2.5}],
)
def test_clips_are_read_as_the_code_and_as_the_documents_of_upstream_spell_them(item: dict[str, Any]):
    unified = parse({"conversations": TALK, "data": [{"type": "video", "video_list": [item, "w.mp4"]}]})
    legacy = parse({"conversations": TALK, "video": [item, "w.mp4"]})
    assert unified == legacy
    assert unified.videos == (VideoRef("v.mp4", 1.0, 2.5), VideoRef("w.mp4"))


def test_an_lmdb_reference_joins_its_store_to_the_root():
    sample = parse({"conversations": TALK, "image": {"lmdb_file": "s.lmdb", "lmdb_key": 7}}, root="/m")
    assert sample.images == (ImageRef("/m/s.lmdb", "7"),)


@pytest.mark.parametrize(
    "path", ["http://example.org/a.png", "https://example.org/a.png", "file:///a.png", "data:image/png;base64,AA=="]
)
def test_an_address_is_not_joined_to_the_root(path: str):
    assert parse({"conversations": TALK, "image": path}, root="/m").images == (ImageRef(path),)


def test_an_absolute_path_is_not_joined_to_the_root():
    assert parse({"conversations": TALK, "image": "/x/a.png"}, root="/m").images == (ImageRef("/x/a.png"),)


def test_all_entries_of_one_type_count():
    data = [{"type": "image", "image_list": ["a.png"]}, {"type": "image", "image_list": ["b.png"]}]
    assert [ref.path for ref in parse({"conversations": TALK, "data": data}).images] == ["a.png", "b.png"]


def test_all_roles_are_read():
    roles = ["system", "user", "human", "observation", "assistant", "gpt"]
    sample = parse({"conversations": [{"from": role, "value": "x"} for role in roles]})
    assert [message.role for message in sample.messages] == ["system", "user", "user", "observation", "assistant", "assistant"]


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        ([1, 2], "bad record", "must be a JSON object"),
        ({}, "empty conversation", "the conversation is empty"),
        ({"conversations": []}, "empty conversation", "the conversation is empty"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "empty conversation", "no answer to learn from"),
        ({"conversations": [*TALK[:1], {"from": "gpt", "value": " "}]}, "empty conversation", "no answer to learn from"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "bad turn", "turn 1 is from 'robot'; use one of human"),
        ({"conversations": [*TALK, {"from": "system", "value": "hi"}]}, "bad turn", "turn 3 is a system turn"),
        ({"conversations": [{"from": "human"}]}, "bad turn", "turn 1 must be an object"),
        ({"conversations": [{"from": "human", "value": "\ud800"}, *TALK]}, "bad turn", "turn 1 holds half a surrogate pair"),
        ({"conversations": TALK, "image": 3}, "bad media reference", "non-empty string, not 3"),
        ({"conversations": TALK, "image": "a\0b"}, "bad media reference", "non-empty string"),
        ({"conversations": TALK, "image": "\ud800"}, "bad media reference", "non-empty string"),
        ({"conversations": TALK, "image": {"lmdb_file": "s"}}, "bad media reference", "lmdb_key must be a string"),
        ({"conversations": TALK, "image": {"url": "x"}}, "bad media reference", "needs lmdb_file and lmdb_key"),
        ({"conversations": TALK, "video": {"start": 1}}, "bad media reference", "needs video (or path)"),
        ({"conversations": TALK, "video": {"path": "v", "start": 2, "end": 2}}, "bad media reference", "not after its start"),
        ({"conversations": TALK, "video": {"path": "v", "end": 0}}, "bad media reference", "not after its start"),
        ({"conversations": TALK, "video": {"path": "v", "start": "1"}}, "bad media reference", "start must be seconds"),
        ({"conversations": TALK, "video": {"path": "v", "end": float("nan")}}, "bad media reference", "end must be seconds"),
        ({"conversations": TALK, "image": "a", "data": [{"type": "text"}]}, "bad record", "use one form"),
        ({"conversations": TALK, "data": [{"type": "image", "images": ["a"]}]}, "bad record", "image_list"),
        ({"conversations": TALK, "data": [{"type": "audio"}]}, "bad record", "audio"),
        ({"conversations": TALK, "data": "a.png"}, "bad record", '"data" must be a list'),
    ],
)
def test_a_bad_record_is_refused_with_its_kind_and_the_mend(record: Any, kind: str, words: str):
    error = refusal(record)
    assert words in str(error)
    assert error.kind == kind
    assert error.where == "a.jsonl:1"


def test_bad_lines_are_named_by_number_and_the_good_ones_around_them_are_kept(tmp_path: Path):
    good = json.dumps({"conversations": TALK}).encode()
    lines = [good, b"{not json", b"", b"\xff\xfe", good, b"[" * 100_000, b"9" * 5000, b'"\\ud800"', good]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n")
    read = list(read_annotations(path, dataset="d"))
    assert [line.where for line in read if isinstance(line, Sample)] == [f"{path}:{n}" for n in (1, 5, 9)]
    rejects = {line.where: line for line in read if isinstance(line, Reject)}
    assert list(rejects) == [f"{path}:{n}" for n in (2, 4, 6, 7, 8)]
    assert "not JSON" in rejects[f"{path}:2"].reason
    assert "UTF-8" in rejects[f"{path}:4"].reason
    assert [reject.kind for reject in rejects.values()] == ["not JSON"] * 4 + ["bad record"]


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    record = {"conversations": [{"from": "human", "value": "a\u2028b\u0085c"}, TALK[1]]}
    path.write_text(json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8")
    [sample] = read_annotations(path, dataset="d")
    assert isinstance(sample, Sample)
    assert sample.messages[0].text == "a\u2028b\u0085c"


def test_a_missing_annotation_file_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        list(read_annotations(tmp_path / "none.jsonl", dataset="d"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("conversations", "image", "video", "data", "from", "value", "type", "path", "documents", "start", "pages"),
                    *(
                        "messages",
                        "role",
                        "content",
                        "weight",
                        "query",
                        "response",
                        "history",
                        "texts",
                        "user",
                        "assistant",
                        "audio",
                    ),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(record=json_values)
@settings(deadline=None, max_examples=200)
def test_no_json_value_gives_anything_but_a_sample_or_a_sample_error(record: Any):
    try:
        sample = parse(record)
    except SampleError:
        return
    assert sample.messages
