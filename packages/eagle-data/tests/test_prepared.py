"""Prepared files: rows come back as they were stored, whole or not at all, from any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from eagle_data.encode import IGNORE, Encoded, ImageUnit, VideoUnit
from eagle_data.prepared import ROW_GROUP, PreparedDataset, PreparedWriter, prepared_file

ROWS = 2 * ROW_GROUP + 5


def row(number: int) -> Encoded:
    ids = np.arange(number % 7 + 2, dtype=np.int32) + number
    labels = np.where(np.arange(len(ids)) > 0, ids, IGNORE).astype(np.int32)
    units = (ImageUnit(f"{number}.png", None, (1, 1), 1), VideoUnit("v.mp4", None, 2.5, (0, number))) if number % 3 else ()
    return Encoded(ids, labels, units)


def write(folder: Path, rows: int = ROWS) -> None:
    with PreparedWriter(folder, [64, 128]) as writer:
        for number in range(rows):
            writer.add(64, f"a.jsonl:{number}", row(number), ("frames", "tiles") if number % 2 else ())
            if number < 3:
                writer.add(128, f"a.jsonl:{number}", row(number), ())


def same(a: Encoded, b: Encoded) -> bool:
    return np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.labels, b.labels) and a.units == b.units


def test_every_row_comes_back_with_its_provenance(tmp_path: Path):
    write(tmp_path)
    dataset = PreparedDataset(tmp_path, 64, name="d")
    assert len(dataset) == ROWS
    assert dataset.name == "d"
    for number in np.random.default_rng(0).permutation(ROWS).tolist():
        encoded, where = dataset[number]
        assert same(encoded, row(number))
        assert where == dataset.where(number) == f"a.jsonl:{number}"
        assert dataset.lengths[number] == len(encoded.input_ids)
        assert dataset.tiles[number] == encoded.tiles
        assert dataset.degraded(number) == bool(number % 2)
        assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32
    assert len(PreparedDataset(tmp_path, 128)) == 3


def test_rows_may_be_read_from_several_threads_at_once(tmp_path: Path):
    write(tmp_path)
    dataset = PreparedDataset(tmp_path, 64)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: same(dataset[number][0], row(number)), list(range(ROWS)) * 2))


def test_a_row_outside_the_file_is_an_error(tmp_path: Path):
    write(tmp_path, 3)
    for number in (-1, 3):
        with pytest.raises(IndexError, match="has 3 samples"):
            PreparedDataset(tmp_path, 64)[number]


def test_a_file_may_hold_no_samples(tmp_path: Path):
    write(tmp_path, 0)
    assert len(PreparedDataset(tmp_path, 64)) == 0


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_of_the_new_one(tmp_path: Path):
    write(tmp_path, 3)
    before = prepared_file(tmp_path, 64).read_bytes()

    def interrupted() -> None:
        with PreparedWriter(tmp_path, [64]) as writer:
            writer.add(64, "a.jsonl:1", row(1), ())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert prepared_file(tmp_path, 64).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_context_length_that_was_not_prepared_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"context-64\.parquet does not exist; prepare the dataset for context_length 64"):
        PreparedDataset(tmp_path, 64)
