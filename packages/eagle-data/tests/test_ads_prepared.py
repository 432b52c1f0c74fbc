"""Degradation in prepared data: every record says what it gave up, the report adds it up, documents are planned like the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from eagle_data.ads import VisualRules
from eagle_data.annotations import parse_record
from eagle_data.encode import ImageUnit
from eagle_data.errors import SampleError
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepared import PreparedDataset, index_file
from eagle_data.recipe import DatasetEntry
from eagle_data.samples import DocumentRef
from eagle_data.tokens import PromptTokenizer
from PIL import Image

from .corpus_files import talk
from .media_files import numbered_picture, write_video
from .test_references import pdf

RULES = VisualRules(tile_size=32, tokens_per_tile=4, max_tiles=6, min_frames=2)
LENGTHS = (150, 300, 2000)


def prepared(tmp_path: Path, records: list[dict[str, Any]], tokenizer: PromptTokenizer) -> DatasetReport:
    annotation = tmp_path / "a.jsonl"
    annotation.write_text("".join(json.dumps(record) + "\n" for record in records))
    entry = DatasetEntry(annotation=annotation, root=tmp_path)
    return prepare({"d": entry}, tmp_path / "out", context_lengths={"d": LENGTHS}, rules=RULES, tokenizer=tokenizer)["d"]


def of_document(pages: list[int] | None = None, text: str = "<document>What?") -> dict[str, Any]:
    entry = {"document": "p.pdf", **({} if pages is None else {"pages": pages})}
    return {"data": [{"type": "document", "document_list": [entry]}], **talk(text)}


def test_records_say_what_was_given_up_and_the_report_adds_it_up(tmp_path: Path, tokenizer: PromptTokenizer):
    Image.fromarray(numbered_picture(3, 200, 150)).save(tmp_path / "a.png")
    write_video(tmp_path / "v.mp4", frames=250)
    both = [{"type": "image", "image_list": ["a.png"]}, {"type": "video", "video_list": ["v.mp4"]}]
    report = prepared(tmp_path, [{"video": "v.mp4", **talk()}, {"data": both, **talk()}, talk()], tokenizer)
    for length in LENGTHS:
        shown, table = report.shown[str(length)], pq.read_table(index_file(tmp_path / "out" / "d", length))
        records = [row.split(",") if row else [] for row in table["degraded"].to_pylist()]
        assert sum(bool(record) for record in records) == report.degraded[str(length)]
        for name, count in (("frames", "fewer_frames"), ("tiles", "fewer_tiles")):
            assert sum(part.startswith(name) for record in records for part in record) == shown[count]
        assert shown["tokens"] == sum(table["length"].to_pylist())
        assert shown["visual_tokens"] == 4 * sum(table["tiles"].to_pylist()) == 4 * (shown["frames"] + shown["image_tiles"])
        assert shown["visual_tokens"] <= shown["optimum_visual_tokens"]
    short, long = report.shown[str(LENGTHS[0])], report.shown[str(LENGTHS[-1])]
    assert short["frames"] < short["wished_frames"] <= long["wished_frames"] == long["frames"]
    assert (long["fewer_frames"], long["fewer_tiles"], report.degraded[str(LENGTHS[-1])]) == (0, 0, 0)
    assert long["visual_tokens"] == long["optimum_visual_tokens"]


def test_pages_of_a_document_are_prepared_as_pictures_all_of_them_or_those_named(tmp_path: Path, tokenizer: PromptTokenizer):
    pytest.importorskip("pypdfium2", reason="the extra pdf is not installed")
    (tmp_path / "p.pdf").write_bytes(pdf(40))
    report = prepared(tmp_path, [of_document(), of_document([3, 2]), of_document([41])], tokenizer)
    assert (report.prepared, report.rejected) == (2, 1)
    short, long = (PreparedDataset(tmp_path / "out" / "d", length) for length in (LENGTHS[1], LENGTHS[-1]))

    def pages(dataset: PreparedDataset, row: int) -> list[int]:
        units = dataset[row][0].units
        assert all(isinstance(unit, ImageUnit) for unit in units)
        return [int(unit.path.rsplit("::", 1)[1]) for unit in units]

    assert pages(long, 0) == list(range(1, 41))
    assert pages(long, 1) == [3, 2]
    some = pages(short, 0)
    assert (some[0], some[-1]) == (1, 40)
    assert 2 <= len(some) < 40
    assert report.shown[str(LENGTHS[1])]["fewer_frames"] == 1


def parsed(record: dict[str, Any]) -> tuple[DocumentRef, ...]:
    return parse_record(record, dataset="d", where="a.jsonl:1", root="r").documents


def test_documents_are_read_in_every_spelling():
    assert parsed(of_document([2, 1])) == (DocumentRef("r/p.pdf", (2, 1)),)
    assert parsed(of_document()) == (DocumentRef("r/p.pdf", ()),)
    bare = {"data": [{"type": "document", "document_list": "p.pdf"}], **talk("<document-1>?")}
    assert parsed(bare) == (DocumentRef("r/p.pdf", ()),)


@pytest.mark.parametrize("pages", [[], [0], ["1"], [True], 3])
def test_pages_that_are_no_numbers_are_refused(pages: Any):
    with pytest.raises(SampleError, match="pages must be a list of page numbers from 1"):
        parsed(of_document(pages))


def test_the_word_document_in_a_text_means_nothing_without_documents():
    sample = parse_record(talk("In <document> tags."), dataset="d", where="a.jsonl:1")
    assert sample.messages[0].text == "In <document> tags."
    with pytest.raises(SampleError, match="0 document"):
        parse_record(talk("In <document-1>."), dataset="d", where="a.jsonl:1")
    with pytest.raises(SampleError, match="2 document placeholder"):
        parsed(of_document(text="<document><document>"))
