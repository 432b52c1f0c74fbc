"""Stored indexes: videos of a prepared dataset open without reading their tables, and never by the index of another file."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from eagle_data.encode import VideoUnit
from eagle_data.errors import MediaError, MissingMediaError
from eagle_data.loader import Pack, Source, StatefulLoader
from eagle_data.media.byte_source import LocalFileSource
from eagle_data.media.reader import ContainerReader
from eagle_data.media_index import MediaIndexWriter, PreparedMedia, media_index_file
from eagle_data.prepare import prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer
from eagle_data.units import load_unit
from eagle_data.video import open_video, read_frames

from .corpus_files import write_annotations, write_media
from .media_files import write_video
from .test_prepare import LONG, RULES


def store(folder: Path, *paths: str) -> PreparedMedia:
    with MediaIndexWriter(folder) as writer:
        for path in paths:
            with open_video(path) as video:
                assert video.index is not None
                writer.add(path, video.index)
    return PreparedMedia(folder)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return str(write_video(tmp_path / "v.mp4", frames=40))


def test_indexes_come_back_whatever_the_group_they_lie_in(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eagle_data.media_index._GROUP_BYTES", 5000)
    paths = [clip, *(str(write_video(tmp_path / f"{n}.mkv", frames=n)) for n in range(20, 27))]
    media = store(tmp_path, *paths)
    order = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))] * 2
    with ThreadPoolExecutor(4) as pool:
        for path, index in zip(order, pool.map(media.index_of, order), strict=True):
            with open_video(path) as video:
                assert index is not None
                assert video.index is not None
                assert index.to_bytes() == video.index.to_bytes()
    assert media.index_of("other.mp4") is None


def test_a_folder_without_stored_indexes_opens_videos_all_the_same(tmp_path: Path, clip: str):
    for media in (PreparedMedia(), PreparedMedia(tmp_path)):
        with media.open_video(clip, start=0.4) as video:
            assert video.metadata.frames == 30


def test_a_writer_that_breaks_off_leaves_the_old_file(tmp_path: Path, clip: str):
    store(tmp_path, clip)
    before = media_index_file(tmp_path).read_bytes()

    def interrupted() -> None:
        with MediaIndexWriter(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert media_index_file(tmp_path).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_opening_reads_no_byte_and_frames_read_none_of_the_tables(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch):
    media = store(tmp_path, clip)
    expected = read_frames(clip, [3, 31])
    data = Path(clip).read_bytes()
    tables = data.index(b"moov") - 4
    tables_end = tables + int.from_bytes(data[tables : tables + 4], "big")
    read: list[tuple[int, int]] = []
    real = LocalFileSource.read_at

    def count(self: LocalFileSource, offset: int, length: int) -> bytes:
        read.append((offset, offset + length))
        return real(self, offset, length)

    monkeypatch.setattr(LocalFileSource, "read_at", count)
    with open_video(clip):
        assert any(first < tables_end and last > tables for first, last in read)
    read.clear()
    with media.open_video(clip, start=0.0) as video:
        assert read == []
        assert np.array_equal(video.frames_at([3, 31]).intact(), expected)
    assert read
    assert not any(first < tables_end and last > tables for first, last in read)


def test_a_file_with_another_time_is_indexed_anew_and_one_with_other_frames_is_refused(tmp_path: Path, clip: str):
    media = store(tmp_path, clip)
    os.utime(clip, ns=(0, 0))
    with media.open_video(clip) as video:
        assert video.index is not None
        assert video.index.source_mtime_ns == 0
    write_video(Path(clip), frames=39)
    with pytest.raises(MediaError, match=r"v\.mp4: has changed since the dataset was prepared"):
        media.open_video(clip)
    Path(clip).unlink()
    with pytest.raises(MissingMediaError), media.open_video(clip) as video:
        video.frames_at([0])


def test_members_of_archives_and_scanned_containers_have_stored_indexes_too(
    tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch
):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(clip, "in/v.mp4")
    member, stream = f"{tmp_path / 'a.tar'}::in/v.mp4", str(write_video(tmp_path / "v.ts", frames=40))
    media = store(tmp_path, member, stream)
    expected = {path: read_frames(path, [7, 30]) for path in (member, stream)}
    monkeypatch.setattr(ContainerReader, "_make_index", refuse)
    for path, pixels in expected.items():
        with media.open_video(path) as video:
            assert np.array_equal(video.frames_at([7, 30]).intact(), pixels)
    write_video(Path(clip), frames=12)
    monkeypatch.undo()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(clip, "in/v.mp4")
    with pytest.raises(MediaError, match="has changed since the dataset was prepared"):
        media.open_video(member)


def test_a_damaged_index_is_an_error_that_names_it(tmp_path: Path, clip: str):
    media = store(tmp_path, clip)
    index = media.index_of(clip)
    assert index is not None

    class Broken:
        source_size, source_mtime_ns = index.source_size, index.source_mtime_ns

        def __len__(self) -> int:
            return len(index)

        def to_bytes(self) -> bytes:
            return index.to_bytes()[:-1]

    with MediaIndexWriter(tmp_path) as writer:
        writer.add(clip, Broken())  # pyright: ignore[reportArgumentType]
    with pytest.raises(MediaError, match=r"media-index\.parquet .*v\.mp4.*is not a frame index"):
        PreparedMedia(tmp_path).open_video(clip)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("an index was made anew")


def packs(folder: Path) -> list[Pack]:
    loader = StatefulLoader([Source(PreparedDataset(folder, LONG))], context_length=LONG, tile_size=32, seed=0, prefetch=2)
    return list(islice(loader, len(loader.epoch_packs(0))))


def test_a_loader_indexes_no_video_of_what_was_prepared(
    tmp_path: Path, tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
):
    write_media(tmp_path / "media")
    write_annotations(tmp_path / "a.jsonl")
    entry = DatasetEntry(annotation=tmp_path / "a.jsonl", root=tmp_path / "media")
    prepare({"d": entry}, tmp_path / "out", context_lengths={"d": [LONG]}, rules=RULES, tokenizer=tokenizer, verify=True)
    dataset = PreparedDataset(tmp_path / "out" / "d", LONG)
    units = {unit for row in range(len(dataset)) for unit in dataset[row][0].units if isinstance(unit, VideoUnit)}
    expected = {unit: load_unit(unit, tile_size=32) for unit in units}
    before = packs(tmp_path / "out" / "d")
    with monkeypatch.context() as patched:
        patched.setattr(ContainerReader, "_make_index", refuse)
        for unit, pixels in expected.items():
            assert np.array_equal(load_unit(unit, tile_size=32, media=dataset.media), pixels)
        after = packs(tmp_path / "out" / "d")
    assert not any(pack.failures for pack in after)
    for one, other in zip(before, after, strict=True):
        assert [sample.where for sample in one.samples] == [sample.where for sample in other.samples]
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one.samples, other.samples, strict=True))
    media_index_file(tmp_path / "out" / "d").unlink()
    monkeypatch.setattr(ContainerReader, "_make_index", refuse)
    with pytest.raises(AssertionError, match="made anew"):
        packs(tmp_path / "out" / "d")


def test_an_index_that_was_deleted_is_made_again_with_the_dataset(tmp_path: Path, tokenizer: PromptTokenizer):
    write_media(tmp_path / "media")
    write_annotations(tmp_path / "a.jsonl")
    entry = DatasetEntry(annotation=tmp_path / "a.jsonl", root=tmp_path / "media")

    def run() -> None:
        prepare({"d": entry}, tmp_path / "out", context_lengths={"d": [LONG]}, rules=RULES, tokenizer=tokenizer)

    run()
    media_index_file(tmp_path / "out" / "d").unlink()
    run()
    assert PreparedMedia(tmp_path / "out" / "d").index_of(str(tmp_path / "media" / "good.mp4")) is not None
