"""Annotation files in every form give the same records, in groups that follow from their content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eagle_data.annotation_files import LEAST, MOST, Chunk, chunks, count_records, records
from eagle_data.annotations import Reject, read_annotations
from eagle_data.cell_columns import CellColumns, column_that_counts
from eagle_data.errors import SampleError
from eagle_data.images import image_size
from eagle_data.samples import ImageRef, Sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .corpus_files import talk

TALKS = [{"image": f"{n}.png", **talk(f"<image>\nNumber {n}?", f"It is {n}.")} for n in range(300)]


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def numbered(path: Path) -> list[tuple[int, Any]]:
    return [record for chunk in chunks(path) for record in records(chunk)]


def on_disk(folder: Path, values: list[dict[str, Any]], parts: int = 2) -> Path:
    """A dataset as `save_to_disk` of Hugging Face's datasets writes it: Arrow streams, and a state that lists them."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(values)
    files = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    size = -(-len(values) // parts)
    for part, file in enumerate(files):
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(part * size, size), max_chunksize=100)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_every_form_of_file_gives_the_same_records(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(TALKS), tmp_path / "a.parquet", row_group_size=70)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for part in (0, 1):
        rows = pa.Table.from_pylist(TALKS[part * 150 : (part + 1) * 150])
        pq.write_table(rows, tmp_path / "hub" / "data" / f"train-{part}.parquet")
    pq.write_table(pa.Table.from_pylist([{"text": "another split"}]), tmp_path / "hub" / "data" / "test-0.parquet")
    on_disk(tmp_path / "splits" / "train", TALKS)
    (tmp_path / "splits" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    (tmp_path / "array.json").write_text(json.dumps(TALKS, indent=2))
    forms = [
        *(write_lines(tmp_path / name, TALKS) for name in ("a.jsonl", "lines.json")),
        *(tmp_path / name for name in ("array.json", "a.parquet", "hub", "splits")),
        on_disk(tmp_path / "disk", TALKS),
    ]
    for form in forms:
        assert [record for _, record in numbered(form)] == TALKS, form
        assert count_records(form) == (None if form.name == "array.json" else len(TALKS)), form
        assert all(isinstance(sample, Sample) for sample in read_annotations(form, dataset="d"))


def test_numbers_are_those_of_lines_items_and_rows(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl", TALKS)
    (tmp_path / "a.json").write_text(json.dumps(TALKS))
    pq.write_table(pa.Table.from_pylist(TALKS), tmp_path / "a.parquet")
    assert [number for number, _ in numbered(tmp_path / "a.jsonl")] == list(range(1, 301))
    assert [number for number, _ in numbered(tmp_path / "a.json")] == list(range(1, 301))
    assert [number for number, _ in numbered(tmp_path / "a.parquet")] == list(range(300))


def test_what_cannot_be_counted_is_named_with_its_mend(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no dataset"):
        count_records(tmp_path)
    with pytest.raises(FileNotFoundError):
        count_records(tmp_path / "gone.jsonl")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=r"torn\.parquet cannot be read .*; copy or save it again"):
        count_records(tmp_path / "torn.parquet")
    (tmp_path / "blank.jsonl").write_bytes(b"\xef\xbb\xbf{}\n\n  \n{}")
    assert count_records(tmp_path / "blank.jsonl") == len(numbered(tmp_path / "blank.jsonl")) == 2


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), change=st.sampled_from(["edit", "add", "remove"]))
def test_a_changed_line_changes_its_group_and_none_that_lies_far_behind(
    seed: int, change: str, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("lines")
    values: list[Any] = [f"{seed} {n}" for n in range(3000)]
    before = [chunk.payload for chunk in chunks(write_lines(folder / "a.jsonl", values))]
    at = 500 + seed % 500
    values[at : at + (change != "add")] = [] if change == "remove" else ["changed"]
    after = [chunk.payload for chunk in chunks(write_lines(folder / "a.jsonl", values))]
    assert b"".join(after).count(b"\n") == len(values)
    assert all(LEAST <= payload.count(b"\n") <= MOST for payload in after[:-1])
    redone = [payload for payload in after if payload not in set(before)]
    assert 1 <= len(redone) <= 20
    assert after[-5:] == before[-5:]


def test_an_edited_row_changes_one_group_of_rows(tmp_path: Path):
    def groups(values: list[dict[str, Any]]) -> list[bytes]:
        pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet", row_group_size=100)
        return [chunk.content for chunk in chunks(tmp_path / "a.parquet")]

    before = groups(TALKS)
    after = groups([*TALKS[:200], {"image": "x.png", **talk("<image>New?")}, *TALKS[201:]])
    assert len(before) == len(after) == 3
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_json_columns_are_read_and_keys_of_other_rows_are_none(tmp_path: Path):
    rows = [
        {"image": None, "conversations": json.dumps(talk()["conversations"])},
        {"image": {"lmdb_file": "s", "lmdb_key": "1", "path": None}, "conversations": json.dumps(talk()["conversations"])},
        {"image": {"lmdb_file": None, "lmdb_key": None, "path": "a.png"}, "conversations": json.dumps(talk()["conversations"])},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    samples = list(read_annotations(tmp_path / "a.parquet", dataset="d", root="r"))
    assert [sample.images for sample in samples if isinstance(sample, Sample)] == [
        (),
        (ImageRef("r/s", "1"),),
        (ImageRef("r/a.png"),),
    ]


PICTURES = {
    "struct": lambda data: {"bytes": data, "path": None},
    "bytes": lambda data: data,
}


@pytest.mark.parametrize("form", PICTURES)
@pytest.mark.parametrize("kept_as", ["parquet", "disk"])
def test_pictures_inside_rows_are_named_by_cell_and_rows_without_one_stay_text(tmp_path: Path, form: str, kept_as: str):
    cells = [picture(tmp_path, 40 + n, PICTURES[form]) if n % 3 else None for n in range(MOST + 3)]
    rows = [{"image": cell, **talk(f"{'<image>' if cell else ''}Row {n}?")} for n, cell in enumerate(cells)]
    samples = read_as(kept_as, tmp_path, rows)
    for n, (cell, sample) in enumerate(zip(cells, samples, strict=True)):
        assert isinstance(sample, Sample), sample
        assert [image_size(image.source) for image in sample.images] == ([(40 + n, 30)] if cell else [])


@pytest.mark.parametrize("form", PICTURES)
@pytest.mark.parametrize("kept_as", ["parquet", "disk"])
def test_lists_of_pictures_inside_rows_are_named_one_by_one(tmp_path: Path, form: str, kept_as: str):
    many = [None, [], *([picture(tmp_path, 10 * n + k, PICTURES[form]) for k in range(n)] for n in range(1, 5))]
    rows = [{"images": cell, **talk("<image>" * len(cell or ()) + f"Row {n}?")} for n, cell in enumerate(many)]
    samples = read_as(kept_as, tmp_path, rows)
    for n, (cell, sample) in enumerate(zip(many, samples, strict=True)):
        assert isinstance(sample, Sample), sample
        assert [image_size(image.source) for image in sample.images] == [(10 * (n - 1) + k, 30) for k in range(len(cell or ()))]


def test_a_column_of_pictures_that_is_never_empty_is_not_read_for_its_counts(tmp_path: Path):
    table = pa.Table.from_pylist([{"image": picture(tmp_path, 40), **talk("<image>?")} for _ in range(3)])
    pq.write_table(table, tmp_path / "said.parquet")
    pq.write_table(table, tmp_path / "unsaid.parquet", write_statistics=False)
    read = [column_that_counts(pq.read_metadata(tmp_path / f"{name}.parquet"), "image") for name in ("said", "unsaid")]
    assert read == [None, "image"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": b"x", "path": None}, None], kind)}), tmp_path / "s.parquet")
    assert column_that_counts(pq.read_metadata(tmp_path / "s.parquet"), "image") == "image.path"


def picture(folder: Path, width: int, form=lambda data: data):
    """A PNG of a width and 30 px, as a cell holds it."""
    Image.new("RGB", (width or 1, 30)).save(folder / "a.png")
    return form((folder / "a.png").read_bytes())


def read_as(kept_as: str, folder: Path, rows: list[dict[str, Any]]) -> list[Sample | Reject]:
    if kept_as == "disk":
        return list(read_annotations(on_disk(folder / "disk", rows), dataset="d", root="elsewhere"))
    pq.write_table(pa.Table.from_pylist(rows), folder / "cells.parquet", row_group_size=70)
    return list(read_annotations(folder / "cells.parquet", dataset="d", root="elsewhere"))


@pytest.mark.parametrize("broken", ['[{"a": 1}, {"b": ', '[{"a": 1}, nonsense, {"b": 2}]', '[{"a": 1}', '[{"a": 1} {"b'])
def test_an_array_that_breaks_off_gives_what_stands_before_and_one_refusal(broken: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(broken)
    (number, first), *_, (_, last) = numbered(tmp_path / "a.json")
    assert (number, first) == (1, {"a": 1})
    assert isinstance(last, SampleError)
    assert last.kind == "not JSON"


def test_an_array_larger_than_what_is_read_at_once_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eagle_data.annotation_files._READ_AT_ONCE", 7)
    values = [*TALKS[:5], {"n": 1234567890, "text": "é\u2028[]{},"}, 12345678901, [], "x", None]
    (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    assert [record for _, record in numbered(tmp_path / "a.json")] == values
    (tmp_path / "a.json").write_text("[]")
    assert numbered(tmp_path / "a.json") == []


def test_columns_of_bytes_that_nothing_reads_are_refused_and_not_left_out(tmp_path: Path):
    sound = [{**talk(), "audio": {"bytes": b"RIFF", "path": "a.wav"}, "vector": b"12"}]
    pq.write_table(pa.Table.from_pylist(sound), tmp_path / "a.parquet")
    [cell] = read_annotations(tmp_path / "a.parquet", dataset="d")
    assert isinstance(cell, Reject)
    assert (cell.kind, '"audio" names media but is not read' in cell.reason) == ("unread media", True)
    [mapped] = read_annotations(on_disk(tmp_path / "disk", sound, parts=1), dataset="d")
    assert isinstance(mapped, Reject)
    assert mapped.kind == "unread media"
    deep = [{**talk(), "images": [[b"1"], [b"2", b"3"]]}]
    pq.write_table(pa.Table.from_pylist(deep), tmp_path / "deep.parquet")
    [lost] = read_annotations(tmp_path / "deep.parquet", dataset="d")
    assert isinstance(lost, Reject)
    assert "column 'images' have no name" in lost.reason
    pq.write_table(pa.Table.from_pylist([{**talk(), "vector": b"12", "vectors": [b"1"]}]), tmp_path / "b.parquet")
    [sample] = read_annotations(tmp_path / "b.parquet", dataset="d")
    assert isinstance(sample, Sample)


def test_a_folder_without_a_dataset_or_with_several_splits_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no dataset"):
        list(chunks(tmp_path))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["a", "b"]}))
    with pytest.raises(FileNotFoundError, match="has the splits a, b; give the folder of one"):
        list(chunks(tmp_path))


def test_equal_lines_are_equal_content_wherever_they_stand():
    one, other = Chunk("a.jsonl", 1, "lines", b"x\n"), Chunk("b.jsonl", 900, "lines", b"x\n")
    assert one.content == other.content
    cells = [Chunk("a.parquet", first, "rows", b"x", cells=CellColumns(("image",))) for first in (0, 128)]
    assert cells[0].content != cells[1].content
