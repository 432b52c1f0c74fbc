"""Preparation of real files end to end: no good sample lost, every bad one listed, nothing redone or half done."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.ads import VisualRules
from eagle_data.collate import collate
from eagle_data.dialect import TRAINING
from eagle_data.encode import VideoUnit
from eagle_data.images import image_size
from eagle_data.loader import Source, StatefulLoader
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepared import PreparedDataset, context_folder, index_file
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer

from .corpus_files import talk, write_annotations, write_media

RULES = VisualRules(tile_size=32, tokens_per_tile=4, max_tiles=6, min_frames=4)
SHORT, LONG = 160, 512


@dataclass
class Corpus:
    """A prepared corpus and what is known of it."""

    entry: DatasetEntry
    out: Path
    good: list[int]
    bad: dict[int, str]
    corrupt: int
    tokenizer: PromptTokenizer

    def where(self, line: int) -> str:
        return f"{self.entry.annotation}:{line}"

    def prepare(self, **options: Any) -> DatasetReport:
        settings: dict[str, Any] = {"context_lengths": {"d": [SHORT, LONG]}, "rules": RULES, "tokenizer": self.tokenizer}
        return prepare({"d": self.entry}, self.out, **{**settings, **options})["d"]

    def lines(self, context_length: int) -> list[int]:
        dataset = PreparedDataset(self.out / "d", context_length)
        return [int(dataset.where(row).rsplit(":", 1)[1]) for row in range(len(dataset))]

    def rejects(self) -> dict[str, dict[str, str]]:
        entries = [json.loads(line) for line in (self.out / "rejects.jsonl").read_text().splitlines()]
        assert len({entry["where"] for entry in entries}) == len(entries)
        return {entry["where"]: entry for entry in entries}


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: PromptTokenizer) -> Corpus:
    write_media(tmp_path / "media")
    good, bad, corrupt = write_annotations(tmp_path / "a.jsonl")
    entry = DatasetEntry(annotation=tmp_path / "a.jsonl", root=tmp_path / "media")
    return Corpus(entry, tmp_path / "out", good, bad, corrupt, tokenizer)


def test_no_good_sample_is_lost_and_every_bad_one_is_listed_with_file_line_and_kind(corpus: Corpus):
    report = corpus.prepare(verify=True)
    assert corpus.lines(LONG) == corpus.good
    expected = {corpus.where(line): kind for line, kind in corpus.bad.items()} | {
        corpus.where(corpus.corrupt): "unreadable media"
    }
    assert {where: entry["kind"] for where, entry in corpus.rejects().items()} == expected
    assert (report.read, report.prepared, report.rejected) == (len(corpus.good) + len(expected), len(corpus.good), len(expected))
    assert sum(report.reasons.values()) == report.rejected
    assert report.reasons["missing media"] == 4
    assert json.loads((corpus.out / "report.json").read_text())["d"]["reasons"] == report.reasons


def test_what_was_prepared_under_a_relative_root_loads_from_any_working_directory(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    entry = corpus.entry.model_copy(update={"root": Path("media")})
    replace(corpus, entry=entry).prepare()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = StatefulLoader(
        [Source(PreparedDataset(corpus.out / "d", LONG))], context_length=LONG, tile_size=32, seed=0, workers=0
    )
    packs = [pack for pack, _ in zip(iter(source), range(source.packs_in_epoch(0)), strict=False)]
    failed = {where for pack in packs for where, _ in pack.failures}
    assert failed <= {corpus.where(corpus.corrupt)}
    assert sum(len(pack.samples) for pack in packs) == len(corpus.lines(LONG))


def test_every_reason_names_what_was_wrong(corpus: Corpus):
    corpus.prepare(verify=True)
    reasons = " | ".join(entry["reason"] for entry in corpus.rejects().values())
    for words in (
        *("the line is not JSON", "missing.png: no such file", "missing.mp4: no such file", "store[none]: no such key"),
        *("no_store: no LMDB store here", "truncated.mp4", "text.png: is not an image", "2 image placeholder(s)"),
        *("the conversation is empty", "from 'robot'", "raise context_length", "corrupt.jpg: is truncated or corrupt"),
    ):
        assert words in reasons


def test_a_corrupt_picture_is_rejected_when_verified_and_else_fails_when_it_is_loaded(corpus: Corpus):
    corpus.prepare(verify=True)
    assert corpus.corrupt not in corpus.lines(LONG)
    corpus.prepare(verify=False)
    assert corpus.lines(LONG) == [*corpus.good, corpus.corrupt]
    source = Source(PreparedDataset(corpus.out / "d", LONG))
    loader = StatefulLoader([source], context_length=LONG, tile_size=32, seed=0, workers=0, bad_media="leave_out")
    packs = [pack for _, pack in zip(loader.epoch_packs(0), loader, strict=False)]
    [(where, reason)] = [failure for pack in packs for failure in pack.failures]
    assert where == corpus.where(corpus.corrupt)
    assert "truncated or corrupt" in reason
    assert sorted(sample.where for pack in packs for sample in pack.samples) == sorted(map(corpus.where, corpus.good))


def test_prepared_rows_load_and_collate_to_a_batch_whose_tiles_match_its_tokens(corpus: Corpus, tokenizer: PromptTokenizer):
    corpus.prepare(verify=True)
    source = Source(PreparedDataset(corpus.out / "d", LONG))
    loader = StatefulLoader([source], context_length=LONG, tile_size=32, seed=0, workers=0)
    batches = [collate(pack.samples, tile_size=32) for _, pack in zip(loader.epoch_packs(0), loader, strict=False)]
    for batch in batches:
        assert batch.tokens <= LONG
        assert (batch.input_ids == tokenizer.special["<IMG_CONTEXT>"]).sum() == 4 * len(batch.pixel_values)
    assert 0 < np.abs(np.concatenate([batch.pixel_values for batch in batches])).max() <= 1


def test_each_context_length_has_its_own_plan_and_says_what_it_gave_up(corpus: Corpus):
    report = corpus.prepare()
    short, long = (PreparedDataset(corpus.out / "d", n) for n in (SHORT, LONG))
    tiles = [dict(zip(corpus.lines(n), d.tiles.tolist(), strict=True)) for n, d in ((SHORT, short), (LONG, long))]
    assert all(tiles[0][line] <= tiles[1][line] for line in tiles[0])
    assert any(tiles[0][line] < tiles[1][line] for line in tiles[0])
    assert max(short.lengths) <= SHORT
    assert max(long.lengths) <= LONG
    for n, dataset in ((SHORT, short), (LONG, long)):
        assert report.degraded[str(n)] == sum(dataset.degraded(row) for row in range(len(dataset)))
    assert report.degraded[str(SHORT)] > 0


def test_a_sample_that_only_the_longer_context_takes_is_listed_as_too_long_and_not_as_rejected(corpus: Corpus):
    report = corpus.prepare(context_lengths={"d": [24, LONG]})
    assert corpus.lines(LONG) == [*corpus.good, corpus.corrupt]
    listed = [json.loads(line) for line in (corpus.out / "d" / "too_long.jsonl").read_text().splitlines()]
    assert {entry["kind"] for entry in listed} == {"too long"}
    at_24 = {entry["where"] for entry in listed if entry["context_length"] == 24}
    assert len(at_24) == report.too_long["24"] > 1
    assert report.too_long[str(LONG)] == 1
    assert report.prepared == len(corpus.good) + 1
    assert not at_24 & set(corpus.rejects()) - {corpus.where(line) for line, kind in corpus.bad.items() if kind == "too long"}


def test_a_clip_keeps_its_frames_within_the_clip(corpus: Corpus):
    corpus.prepare()
    dataset = PreparedDataset(corpus.out / "d", LONG)
    clips = [unit for row in range(len(dataset)) for unit in dataset[row][0].units if isinstance(unit, VideoUnit) and unit.start]
    assert [(clip.start, clip.end) for clip in clips] == [(0.4, 2.0)]
    assert max(clips[0].indices) == 39


def age(folder: Path) -> None:
    """Make every file of a folder look as if it had been written long ago."""
    for path in folder.iterdir():
        os.utime(path, ns=(0, 0))


def rewritten(folder: Path) -> set[str]:
    """The files written since `age`."""
    return {path.name for path in folder.iterdir() if path.stat().st_mtime_ns}


def test_a_second_run_opens_no_media_and_writes_nothing_anew(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    first = corpus.prepare()
    age(corpus.out / "d")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("media were opened")

    monkeypatch.setattr("eagle_data.media_probes.image_size", refuse)
    monkeypatch.setattr("eagle_data.media_probes.open_video", refuse)
    assert corpus.prepare() == first
    assert not rewritten(corpus.out / "d")
    assert len(corpus.rejects()) == first.rejected


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_a_change_of_anything_that_rows_depend_on_prepares_anew(corpus: Corpus):
    media = corpus.entry.root
    changes = {
        "nothing": lambda: {},
        "an image": lambda: touch(media / "good.png") or {},
        "a video": lambda: touch(media / "good.mp4") or {},
        "a store": lambda: touch(media / "store" / "data.mdb") or {},
        "a frame of a folder": lambda: touch(media / "frames" / "3.png") or {},
        "a file that was missing": lambda: (media / "good.png").rename(media / "missing.png") and {},
        "the annotations": lambda: corpus.entry.annotation.write_text(json.dumps(talk())) and {},
        "the frame rate": lambda: {"rules": replace(RULES, fps=1.0)},
        "the dialect": lambda: {"rules": replace(RULES, dialect=TRAINING)},
        "the context lengths": lambda: {"context_lengths": {"d": [LONG]}},
        "verification": lambda: {"verify": True},
    }
    corpus.prepare()
    redone = {}
    for name, change in changes.items():
        options = change()
        age(corpus.out / "d")
        corpus.prepare(**options)
        redone[name] = "done.json" in rewritten(corpus.out / "d")
        corpus.prepare()
    assert redone == {name: name != "nothing" for name in changes}


def test_context_lengths_that_are_no_longer_asked_for_leave_no_stale_file(corpus: Corpus):
    corpus.prepare()
    corpus.prepare(context_lengths={"d": [LONG]})
    assert not context_folder(corpus.out / "d", SHORT).exists()


@pytest.mark.parametrize("damage", ["deleted", "cut short"])
@pytest.mark.parametrize("pattern", ["index.parquet", "groups.parquet", "rows-*.parquet", "../too_long.jsonl"])
def test_a_prepared_file_that_is_gone_or_cut_short_is_made_again(damage: str, pattern: str, corpus: Corpus):
    corpus.prepare()
    [path] = context_folder(corpus.out / "d", LONG).glob(pattern)
    before = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(before[: len(before) // 2])
    corpus.prepare()
    assert path.read_bytes() == before
    dataset = PreparedDataset(corpus.out / "d", LONG)
    assert len([dataset[row] for row in range(len(dataset))]) == len(corpus.good) + 1


def test_a_file_of_the_older_layout_goes_and_the_dataset_is_prepared_again(corpus: Corpus):
    corpus.prepare()
    done = json.loads((corpus.out / "d" / "done.json").read_text())
    (corpus.out / "d" / "done.json").write_text(json.dumps({name: done[name] for name in done if name != "files"}))
    old = corpus.out / "d" / f"context-{LONG}.parquet"
    old.write_bytes(b"PAR1")
    index_file(corpus.out / "d", LONG).unlink()
    corpus.prepare()
    assert not old.exists()
    assert corpus.lines(LONG) == [*corpus.good, corpus.corrupt]


def test_an_interrupted_preparation_goes_on_with_the_dataset_it_was_at(corpus: Corpus):
    datasets = {"first": corpus.entry, "second": corpus.entry}
    lengths = {name: [LONG] for name in datasets}

    def interrupt(name: str, done: int) -> None:
        if name == "second":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(datasets, corpus.out, context_lengths=lengths, rules=RULES, tokenizer=corpus.tokenizer, progress=interrupt)
    age(corpus.out / "first")
    assert not (corpus.out / "report.json").exists()
    reports = prepare(datasets, corpus.out, context_lengths=lengths, rules=RULES, tokenizer=corpus.tokenizer)
    assert not rewritten(corpus.out / "first")
    assert reports["first"] == reports["second"]
    assert len(PreparedDataset(corpus.out / "second", LONG)) == len(corpus.good) + 1


def test_work_that_breaks_off_cannot_pass_for_the_result_of_another_run(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    corpus.prepare()
    with monkeypatch.context() as patched:
        patched.setattr("eagle_data.group_work.encode", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            corpus.prepare(rules=replace(RULES, fps=1.0))
    assert not (corpus.out / "d" / "done.json").exists()
    corpus.prepare()
    assert corpus.lines(LONG) == [*corpus.good, corpus.corrupt]


def test_a_shared_reference_is_probed_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    real = image_size

    def count(source: Any, **options: Any) -> tuple[int, int]:
        opened.append(str(source))
        return real(source, **options)

    monkeypatch.setattr("eagle_data.media_probes.image_size", count)
    corpus.prepare()
    assert sum(source.endswith("good.png") for source in opened) == 1
    assert len(opened) == len(set(opened))


def test_a_tile_limit_of_one_dataset_is_its_own(corpus: Corpus):
    limited = corpus.entry.model_copy(update={"max_dynamic_tiles": 1})
    prepare(
        {"free": corpus.entry, "limited": limited},
        corpus.out,
        context_lengths={"free": [LONG], "limited": [LONG]},
        rules=RULES,
        tokenizer=corpus.tokenizer,
    )
    free, one = (PreparedDataset(corpus.out / name, LONG) for name in ("free", "limited"))
    assert free.tiles.sum() > one.tiles.sum()


def test_progress_ends_at_the_number_of_lines(corpus: Corpus):
    seen: list[tuple[str, int]] = []
    report = corpus.prepare(progress=lambda name, done: seen.append((name, done)))
    assert seen[-1] == ("d", report.read)


def test_a_missing_annotation_file_or_context_length_stops_before_anything_is_done(corpus: Corpus):
    gone = corpus.entry.model_copy(update={"annotation": Path("gone.jsonl")})
    with pytest.raises(FileNotFoundError, match=r"dataset 'd': the annotation file gone\.jsonl"):
        prepare({"d": gone}, corpus.out, context_lengths={"d": [64]}, rules=RULES, tokenizer=corpus.tokenizer)
    with pytest.raises(ValueError, match="dataset 'd': no context length"):
        corpus.prepare(context_lengths={})
    assert not corpus.out.exists()
