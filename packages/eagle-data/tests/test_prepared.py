"""Prepared files: rows come back as they were stored, whole or not at all, from any thread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from eagle_data.encode import IGNORE, Encoded, ImageUnit, VideoUnit
from eagle_data.errors import EagleDataError
from eagle_data.prepared import PreparedDataset, context_folder, index_file
from eagle_data.prepared_rows import ROWS as ROW_GROUP
from eagle_data.prepared_writer import PreparedWriter, ends_shard
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_rows_of_several_shards_may_be_read_from_several_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("prepared_writer._MOST", "prepared._GROUPS_KEPT", "prepared._SHARDS_KEPT"):
        monkeypatch.setattr(f"eagle_data.{name}", 1)
    write(tmp_path)
    assert len(list(context_folder(tmp_path, 64).glob("rows-*.parquet"))) == 3
    dataset = PreparedDataset(tmp_path, 64)
    rows = np.random.default_rng(0).permutation(ROWS).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda n: same(dataset[n][0], row(n)) and dataset.where(n) == f"a.jsonl:{n}", rows))


def test_rows_of_several_files_say_in_which_they_stand(tmp_path: Path):
    names = [f"{file}:{number}" for file in ("a.jsonl", "with:colon.jsonl", "a.jsonl") for number in (5, 6, 1 << 20)]
    with PreparedWriter(tmp_path, [64]) as writer:
        for number, name in enumerate(names):
            writer.add(64, name, row(number), ())
    dataset = PreparedDataset(tmp_path, 64)
    assert [dataset.where(number) for number in range(len(dataset))] == names
    assert not any(dataset.degraded(number) for number in range(len(dataset)))


def test_opening_reads_neither_tokens_nor_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path)
    for shard in context_folder(tmp_path, 64).glob("rows-*.parquet"):
        shard.rename(shard.with_suffix(".away"))
    asked: list[tuple[str, ...]] = []
    real = PreparedDataset._columns
    monkeypatch.setattr(PreparedDataset, "_columns", lambda self, *names: asked.append(names) or real(self, *names))
    dataset = PreparedDataset(tmp_path, 64)
    assert asked == [("length", "tiles")]
    assert dataset.lengths.dtype == dataset.tiles.dtype == np.int32
    assert dataset.lengths.nbytes + dataset.tiles.nbytes == 8 * ROWS
    assert [dataset.where(number) for number in (0, ROWS - 1)] == ["a.jsonl:0", f"a.jsonl:{ROWS - 1}"]
    assert asked[1:] == [("number",)]
    assert dataset.degraded(1)
    assert asked[2:] == [("degraded",)]


def test_a_shard_that_is_gone_or_damaged_is_named_with_the_mend(tmp_path: Path):
    write(tmp_path)
    [shard] = context_folder(tmp_path, 64).glob("rows-*.parquet")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    with pytest.raises(EagleDataError, match=rf"{shard.name} is missing or damaged .*; prepare the dataset again"):
        PreparedDataset(tmp_path, 64)[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name} is gone; open the dataset again if it was prepared anew"):
        PreparedDataset(tmp_path, 64)[0]


@pytest.mark.parametrize("file", ["index.parquet", "groups.parquet"])
def test_an_index_that_is_damaged_is_named_with_the_mend(file: str, tmp_path: Path):
    write(tmp_path)
    path = context_folder(tmp_path, 64) / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(EagleDataError, match=rf"{file} is missing or damaged .*; prepare the dataset again"):
        PreparedDataset(tmp_path, 64)


def test_an_index_and_row_groups_of_two_preparations_do_not_pass_for_one(tmp_path: Path):
    write(tmp_path)
    groups = context_folder(tmp_path, 64) / "groups.parquet"
    before = groups.read_bytes()
    write(tmp_path, ROWS - 1)
    groups.write_bytes(before)
    with pytest.raises(EagleDataError, match=f"it has {ROWS - 1} samples, the row groups {ROWS}"):
        PreparedDataset(tmp_path, 64)


def test_what_is_written_again_is_the_same_files_and_what_changed_goes(tmp_path: Path):
    write(tmp_path)

    def found() -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in context_folder(tmp_path, 64).glob("rows-*")}

    before = found()
    write(tmp_path)
    assert found() == before
    write(tmp_path, ROWS - 1)
    assert not set(found()) & set(before)
    assert len(found()) == len(before)


def shards_of(digests: Sequence[str], size: int) -> list[tuple[str, ...]]:
    shards: list[tuple[str, ...]] = []
    held: list[str] = []
    for digest in digests:
        held.append(digest)
        if ends_shard(digest, len(held), size * len(held)):
            shards.append(tuple(held))
            held = []
    return [*shards, tuple(held)] if held else shards


@given(
    seed=st.integers(0, 2**32 - 1),
    at=st.integers(0, 2000),
    taken=st.integers(0, 3),
    given_=st.integers(0, 3),
    size=st.sampled_from([1, 10_000, 500_000, 3 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_groups_that_come_or_go_change_few_shards_and_every_shard_is_bounded(
    seed: int, at: int, taken: int, given_: int, size: int
):
    digests = [hashlib.blake2b(f"{seed} {number}".encode(), digest_size=16).hexdigest() for number in range(2003)]
    groups, new = digests[:2000], digests[2000 : 2000 + given_]
    before, after = shards_of(groups, size), shards_of(groups[:at] + new + groups[at + taken :], size)
    assert [digest for shard in before for digest in shard] == groups
    assert all(len(shard) <= 128 and size * len(shard) < (64 << 20) + size for shard in before)
    changed = [shard for shard in after if shard not in set(before)]
    assert sum(map(len, changed)) <= 800


def test_a_row_outside_the_file_is_an_error(tmp_path: Path):
    write(tmp_path, 3)
    for number in (-1, 3):
        with pytest.raises(IndexError, match="has 3 samples"):
            PreparedDataset(tmp_path, 64)[number]
        with pytest.raises(IndexError, match="has 3 samples"):
            PreparedDataset(tmp_path, 64).degraded(number)


def test_a_file_may_hold_no_samples(tmp_path: Path):
    write(tmp_path, 0)
    assert len(PreparedDataset(tmp_path, 64)) == 0


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_of_the_new_one(tmp_path: Path):
    write(tmp_path, 3)
    before = index_file(tmp_path, 64).read_bytes()

    def interrupted() -> None:
        with PreparedWriter(tmp_path, [64]) as writer:
            writer.add(64, "a.jsonl:1", row(1), ())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert index_file(tmp_path, 64).read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    assert same(PreparedDataset(tmp_path, 64)[2][0], row(2))


def test_a_context_length_that_was_not_prepared_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"index\.parquet does not exist; prepare the dataset for context_length 64"):
        PreparedDataset(tmp_path, 64)
