"""Records of LLaVA, ShareGPT, OpenAI and the release's own prepared rows mean what they mean in Eagle's form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eagle_data.annotations import parse_record
from eagle_data.dialect import TRAINING
from eagle_data.errors import SampleError
from eagle_data.samples import DocumentRef, ImageRef, Message, Sample, VideoRef


def parse(record: Any) -> Sample:
    return parse_record(record, dataset="d", where="a.jsonl:1", root="r")


def texts(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


EXPECTED = [
    *(("system", "Be brief."), ("user", "<image-1>What is it?"), ("assistant", "A cat.")),
    *(("user", "Sure?"), ("assistant", "Yes.")),
]
LLAVA = {
    "id": "1",
    "image": "a.png",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ],
}
SHAREGPT = {"images": ["a.png"], "system": "Be brief.", "conversations": LLAVA["conversations"][1:]}
CHAT = [
    {"role": "developer", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
            {"type": "text", "text": "What is it?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


def with_part(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [CHAT[0], {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}, *CHAT[2:]]


@pytest.mark.parametrize(
    "record",
    [
        LLAVA,
        SHAREGPT,
        {**SHAREGPT, "conversations": json.dumps(SHAREGPT["conversations"])},
        {"messages": CHAT},
        {"messages": with_part({"type": "image", "image": "a.png"})},
        {"messages": with_part({"type": "input_image", "image_url": "a.png"})},
        {"messages": with_part({"type": "image"}), "images": ["a.png"]},
        {"messages": [CHAT[0], {"role": "user", "content": "<image>\nWhat is it?"}, *CHAT[2:]], "images": ["a.png"]},
        {"conversations": [{"role": m["role"], "content": m["content"]} for m in CHAT[3:]], "system": "Be brief."},
    ],
    ids=["llava", "sharegpt", "json-column", "openai", "image-part", "responses", "listed", "marked", "roles-in-conversations"],
)
def test_every_form_means_the_same_conversation(record: dict[str, Any]):
    sample = parse(record)
    if "image" not in json.dumps(record):
        assert texts(sample) == [EXPECTED[0], *EXPECTED[3:]]
        return
    assert texts(sample) == EXPECTED
    assert sample.images == (ImageRef("r/a.png"),)


def test_speakers_of_other_projects_are_known():
    turns = [
        {"from": "user", "value": "Weather?"},
        {"from": "function_call", "value": "{}"},
        {"from": "tool", "value": "sunny"},
        {"from": "chatgpt", "value": "Sunny."},
    ]
    assert [role for role, _ in texts(parse({"conversations": turns}))] == ["user", "assistant", "observation", "assistant"]


def test_llavas_videos_are_marked_as_images():
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "An <image> of Tom."}]
    sample = parse({"video": "v.mp4", "conversations": turns})
    assert texts(sample) == [("user", "<video-1>Who?"), ("assistant", "An <image> of Tom.")]
    with pytest.raises(SampleError, match="1 image placeholder"):
        parse({"video": "v.mp4", "conversations": [{"from": "human", "value": "<image><video>"}, turns[1]]})


def test_parts_of_every_kind_are_numbered_by_kind():
    parts = [
        {"type": "video", "video": "v.mp4", "video_start": 1, "video_end": 2.5},
        {"type": "text", "text": " and "},
        {"type": "video_url", "video_url": {"url": "https://example.org/w.mp4"}},
        {"type": "document", "document": "p.pdf", "pages": [2]},
        {"type": "image", "path": "a.png"},
    ]
    sample = parse({"messages": [{"role": "user", "content": parts}, CHAT[2]]})
    assert texts(sample)[0] == ("user", "<video-1> and <video-2><document-1><image-1>")
    assert sample.videos == (VideoRef("r/v.mp4", 1.0, 2.5), VideoRef("https://example.org/w.mp4"))
    assert (sample.documents, sample.images) == ((DocumentRef("r/p.pdf", (2,)),), (ImageRef("r/a.png"),))


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        ({"messages": CHAT, "conversations": LLAVA["conversations"]}, "bad record", "use one form"),
        ({**LLAVA, "images": ["b.png"]}, "bad media reference", 'both "image" and "images"'),
        ({"messages": "hello"}, "empty conversation", '"messages" must be a list'),
        ({"messages": with_part({"type": "audio", "audio": "a.wav"})}, "bad turn", "no text, image, video or document"),
        ({"messages": with_part({"type": "image"})}, "bad media reference", "non-empty string, not None"),
        ({"messages": CHAT, "images": ["b.png"]}, "placeholder mismatch", "more media are listed"),
        ({"messages": [CHAT[3], {"role": "assistant", "content": None}]}, "bad turn", "turn 2 must be an object"),
        ({**SHAREGPT, "images": ["a.png", "b.png"]}, "placeholder mismatch", "1 image placeholder(s)"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(record: dict[str, Any], kind: str, words: str):
    with pytest.raises(SampleError) as caught:
        parse(record)
    assert words in str(caught.value)
    assert caught.value.kind == kind


def frames(numbers: range) -> str:
    return "".join(f"Frame {i}: <frame-{k}>" for i, k in enumerate(numbers, 1))


def prepared_row(question: str, data: list[Any]) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
    values = {"unified_frame_list": ["a.png"], "num_tiles_list": [1], "data": [data], "conversations": turns}
    return {name: json.dumps(value) for name, value in values.items()} | {"num_all_tiles": 5, "length": 100}


def test_rows_of_the_releases_prepared_parquet_get_their_media_back():
    images = {"type": "image", "image_list": ["a.png", "b.png"]}
    videos = {"type": "video", "video_list": [{"video": "v.mp4", "start_time": 1, "end_time": 3}, "w.mp4"]}
    first, second = (TRAINING.video_header(k, 2.4, 3, 10.0) for k in (1, 2))
    assert first == "The first video of 10.00 seconds at 2.40 fps: "
    question = f"<image 2><frame-1>\nor <image 1><frame-2>\n?{second}{frames(range(3, 6))}\n{first}{frames(range(6, 8))}\nWell?"
    sample = parse(prepared_row(question, [images, videos]))
    assert texts(sample)[0] == ("user", "<image-2>or <image-1>?<video-2><video-1>Well?")
    assert sample.images == (ImageRef("r/a.png"), ImageRef("r/b.png"))
    assert sample.videos == (VideoRef("r/v.mp4", 1.0, 3.0), VideoRef("r/w.mp4"))
    single = parse(prepared_row("<frame-1>\nWhat?", [{"type": "image", "image_list": ["a.png"]}]))
    assert single.messages[0] == Message("user", "<image-1>What?")
    text = parse(prepared_row("Hello.", []))
    assert (texts(text)[0], text.images) == (("user", "Hello."), ())


def test_a_prepared_row_whose_frames_are_not_its_media_is_refused():
    with pytest.raises(SampleError, match="2 image"):
        parse(prepared_row("<frame-1>\n<frame-2>\nWhat?", [{"type": "image", "image_list": ["a.png"]}]))


DOCUMENT = {"document": "p.pdf", "pages": [2]}


@pytest.mark.parametrize(
    "media",
    [
        {"document": DOCUMENT},
        {"documents": [DOCUMENT]},
        {"documents": DOCUMENT},
        {"document": json.dumps(DOCUMENT)},
        {"document": "p.pdf", "pages": [2]},
        {"documents": ["p.pdf"], "pages": [2]},
        {"document": {"path": "p.pdf", "pages": [2]}},
        {"documents": [{"type": "document", "document_list": [DOCUMENT]}]},
        {"data": [{"type": "document", "document_list": [DOCUMENT]}]},
    ],
)
@pytest.mark.parametrize("mark", ["<document>\n", "<document-1>", ""])
def test_every_spelling_of_a_document_gives_the_same_sample(media: dict[str, Any], mark: str):
    turns = [{"from": "human", "value": f"{mark}Who signed?"}, {"from": "gpt", "value": "The chair."}]
    sample = parse({"conversations": turns, **media})
    assert sample.documents == (DocumentRef("r/p.pdf", (2,)),)
    assert texts(sample)[0] == ("user", "<document-1>Who signed?")


def test_documents_stand_beside_images_and_are_numbered_on_their_own():
    turns = [{"from": "human", "value": "<document-2><image><document-1>"}, {"from": "gpt", "value": "Yes."}]
    sample = parse({"conversations": turns, "documents": ["a.pdf", "b.pdf"], "image": "c.png"})
    assert texts(sample)[0] == ("user", "<document-2><image-1><document-1>")
    assert sample.documents == (DocumentRef("r/a.pdf", ()), DocumentRef("r/b.pdf", ()))
    listed = parse({"messages": [{"role": "user", "content": [{"type": "document"}]}, CHAT[2]], "documents": ["a.pdf"]})
    assert listed.documents == sample.documents[:1]


@pytest.mark.parametrize(
    "times", [{"start": 1, "end": 2.5}, {"start_time": 1, "end_time": 2.5}, {"start_time": 1, "end": 2.5, "end_time": None}]
)
def test_times_beside_one_video_are_those_of_its_clip(times: dict[str, Any]):
    for video in ("v.mp4", ["v.mp4"]):
        assert parse({**TALK, "video": video, **times}).videos == (VideoRef("r/v.mp4", 1.0, 2.5),)
    assert parse({**TALK, **times}).videos == ()


TALK = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Tom."}]}
PAIRS = [("user", "Who?"), ("assistant", "Tom."), ("user", "Sure?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    "record",
    [
        {"query": "Sure?", "response": "Yes.", "history": [["Who?", "Tom."]]},
        {"query": "Sure?", "response": "Yes.", "history": '[["Who?", "Tom."]]', "conversations": []},
        {"instruction": "Sure?", "input": "", "output": "Yes.", "history": [["Who?", "Tom."]]},
        {"conversation": [{"human": "Who?", "assistant": "Tom."}, {"human": "Sure?", "assistant": "Yes."}]},
        {"conversation": [{"role": role, "content": text} for role, text in PAIRS]},
        {"texts": [{"user": "Who?", "assistant": "Tom.", "source": "x"}, {"user": "Sure?", "assistant": "Yes."}]},
    ],
    ids=["query", "query-as-json", "instruction", "pairs", "conversation", "texts"],
)
def test_questions_and_answers_in_pairs_are_turns(record: dict[str, Any]):
    assert texts(parse(record)) == PAIRS
    assert texts(parse({**record, "system": "Be brief."})) == [("system", "Be brief."), *PAIRS]
    shown = parse({**record, "images": ["a.png"]})
    assert (shown.images, shown.messages[0].text) == ((ImageRef("r/a.png"),), "<image-1>Who?")


def test_an_input_stands_on_a_line_of_its_own_behind_the_instruction_and_a_system_text_goes_first():
    assert texts(parse({"instruction": "Sum up.", "input": "1 + 1", "output": "2"}))[0] == ("user", "Sum up.\n1 + 1")
    first = {"system": "Be brief.", "human": "Who?", "assistant": "Tom."}
    assert texts(parse({"conversation": [first]})) == [("system", "Be brief."), *PAIRS[:2]]


def test_parts_are_read_in_conversations_too():
    turns = [{"role": message["role"], "content": message["content"]} for message in CHAT]
    assert texts(parse({"conversations": turns})) == EXPECTED


def answers(*marks: dict[str, Any]) -> dict[str, Any]:
    turns = []
    for number, mark in enumerate(marks):
        turns += [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": f"A{number}", **mark}]
    return {"messages": turns}


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"weight": 0, "loss": False}]
)
def test_an_answer_of_weight_0_is_read_and_not_learned(mark: dict[str, Any]):
    sample = parse(answers(mark, {"weight": 1, "loss": None}, {}))
    assert [(m.text, m.learned) for m in sample.messages if m.role == "assistant"] == [("A0", False), ("A1", True), ("A2", True)]
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A", **mark}, {"from": "chatgpt", "value": "B"}]
    assert [m.learned for m in parse({"conversations": turns}).messages] == [True, False, True]


def test_a_weight_of_a_question_says_nothing():
    sample = parse({"messages": [{"role": "user", "content": "Q", "weight": 0.3}, {"role": "assistant", "content": "A"}]})
    assert sample == parse({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]})


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        (answers({"weight": 0}, {"loss": False}), "nothing learned", "no answer of the conversation is learned"),
        (answers({"weight": 0.5}), "bad turn", 'turn 2 has "weight": 0.5; write 1'),
        (answers({"weight": "0"}), "bad turn", "turn 2 has"),
        (answers({}, {"weight": float("nan")}), "bad turn", "turn 4 has"),
        (answers({"weight": 1, "loss": False}), "bad turn", "learned and that it is not"),
        (answers({"tool_calls": [{"id": "1"}]}), "bad turn", 'turn 2 has "tool_calls", which is not read'),
        ({**TALK, "chosen": "a", "rejected": "b"}, "bad record", "write the chosen one as the last turn"),
        ({**TALK, "kto_tag": False}, "bad record", '"kto_tag" is false'),
        ({**TALK, "document": "a.pdf", "documents": ["b.pdf"]}, "bad media reference", 'both "document" and "documents"'),
        ({**TALK, "document": "a", "data": [{"type": "text"}]}, "bad record", "use one form"),
        ({**TALK, "videos": ["a.mp4", "b.mp4"], "start": 1}, "bad media reference", '"start" beside several videos'),
        ({**TALK, "video": {"video": "a.mp4", "end": 3}, "start": 1}, "bad media reference", "or beside an object"),
        ({**TALK, "documents": ["a.pdf", "b.pdf"], "pages": [1]}, "bad media reference", '"pages" beside several documents'),
        (
            {"messages": CHAT, "data": [{"type": "image", "image_list": ["b.png"]}]},
            "bad media reference",
            "media in its messages",
        ),
        (
            {**TALK, "data": [{"type": "video", "video_list": ["a.mp4"]}], "start": 1},
            "bad media reference",
            '"start" stands beside the videos',
        ),
        ({"query": "Q", "response": None}, "bad turn", "turn 2 must be"),
        ({"query": "Q", "response": "A", "history": [["Q"]]}, "bad turn", '"history" must be a list'),
        ({"conversation": [{"human": "Q"}]}, "bad turn", "turn 1 must be"),
        ({"instruction": "Q"}, "empty conversation", "the conversation is empty"),
    ],
)
def test_what_would_be_learned_otherwise_than_it_was_meant_is_refused(record: dict[str, Any], kind: str, words: str):
    with pytest.raises(SampleError) as caught:
        parse(record)
    assert words in str(caught.value)
    assert caught.value.kind == kind
