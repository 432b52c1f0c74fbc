"""Media that turn bad when they are loaded: replaced or left out by the plan's rule, counted, reported, never tried for ever."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.collate import collate
from eagle_data.encode import WITHHELD, Encoded, ImageUnit
from eagle_data.errors import MediaError
from eagle_data.load_report import LoadReport
from eagle_data.loader import Pack
from eagle_data.prepared_writer import PreparedWriter
from PIL import Image

from .loader_parts import CONTEXT, loader, names, take


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_may_cost_its_sample_and_is_reported(workers: int, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        for number, name in enumerate(["good", "cut", "gone", "good"]):
            ids = np.full(4, number, dtype=np.int32)
            unit = ImageUnit(str(tmp_path / f"{name}.jpg"), None, (1, 1), 1)
            writer.add(CONTEXT, f"d:{number}", Encoded(ids, ids, (unit,)), ())
    [pack] = take(loader(tmp_path, "d", workers=workers, bad_media="leave_out"), 1)
    assert sorted(sample.where for sample in pack.samples) == ["d:0", "d:3"]
    assert pack.stand_ins == pack.blanks == ()
    reasons = dict(pack.failures)
    assert set(reasons) == {"d:1", "d:2"}
    assert "cut.jpg: is truncated or corrupt" in reasons["d:1"]
    assert "gone.jpg: no such file" in reasons["d:2"]


@pytest.fixture
def with_bad_pictures(tmp_path: Path) -> Path:
    """Six samples of four tokens, of which `d:1` has a picture that is gone."""
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        for number in range(6):
            ids = np.full(4, number, dtype=np.int32)
            name = "gone" if number == 1 else "good"
            unit = ImageUnit(str(tmp_path / f"{name}.png"), None, (1, 1), 1)
            writer.add(CONTEXT, f"d:{number}", Encoded(ids, ids, (unit,)), ())
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_blank_keeps_the_tokens_of_a_bad_sample_and_learns_nothing_of_it(with_bad_pictures: Path, workers: int):
    source = loader(with_bad_pictures, "d", bad_media="blank", workers=workers)
    [pack] = take(source, 1)
    assert sorted(sample.where for sample in pack.samples) == [f"d:{number}" for number in range(6)]
    [bad] = [sample for sample in pack.samples if sample.where == "d:1"]
    assert bad.input_ids.tolist() == [1] * 4
    assert bad.labels.tolist() == [WITHHELD] * 4  # not even as a prompt
    assert bad.pixels.shape == (1, 3, 8, 8)
    assert not bad.pixels.any()
    assert [where for where, _ in pack.failures] == ["d:1"]
    assert pack.blanks == ("d:1",)
    report = source.report
    assert (report.packs, report.samples, report.failed, report.replaced, report.blanked) == (1, 6, 1, 0, 1)


def test_a_stand_in_is_another_sample_of_the_source_and_the_same_on_every_start(with_bad_pictures: Path):
    found = set()
    for workers in (0, 1, 2):
        source = loader(with_bad_pictures, "d", workers=workers)
        [pack] = take(source, 1)
        [(bad, other)] = pack.stand_ins
        assert bad == "d:1" != other
        assert Counter(sample.where for sample in pack.samples)[other] == 2
        assert len(pack.samples) == 6
        assert source.report.replaced == source.report.failed == 1
        assert source.report.first == [("d:1", pack.failures[0][1])]
        found.add(other)
    assert len(found) == 1


def test_where_no_picture_can_be_read_each_file_is_tried_a_bounded_number_of_times(
    with_bad_pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    tried: Counter[Any] = Counter()

    def broken(units: Any, **_: Any) -> Any:
        tried[units] += 1
        raise MediaError("a.png", "is bad")

    monkeypatch.setattr("eagle_data.pack_loading.load_units", broken)
    source = loader(with_bad_pictures, "d", bad_media="substitute")
    [pack] = take(source, 1)
    assert sorted(pack.blanks) == sorted(sample.where for sample in pack.samples) == [f"d:{number}" for number in range(6)]
    assert len(pack.failures) == 6
    assert sum(tried.values()) <= 6 * 4


def test_a_pack_whose_only_sample_cannot_be_read_is_not_empty(tmp_path: Path):
    """By default it is blanked where the source has nothing that fits in its room, so that ranks stay in step."""
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        for number in range(3):
            ids = np.full(CONTEXT - (number == 1), number, dtype=np.int32)
            units = (ImageUnit(str(tmp_path / "gone.png"), None, (1, 1), 1),) if number == 1 else ()
            writer.add(CONTEXT, f"d:{number}", Encoded(ids, ids, units), ())
    source = loader(tmp_path, "d")
    packs = take(source, 3)
    assert sorted(names(packs)) == [["d:0"], ["d:1"], ["d:2"]]
    [blank] = [pack for pack in packs if pack.blanks]
    assert collate(blank.samples, tile_size=8).loss_rows.tolist() == []
    assert (source.report.failed, source.report.replaced, source.report.blanked) == (1, 0, 1)


def test_a_stand_in_fits_in_the_room_and_is_drawn_anew_each_epoch(tmp_path: Path):
    """Row 0 is bad; the odd rows are longer, and of the others the last has more tiles."""
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        for number in range(13):
            ids = np.full(20 + number % 2, number, dtype=np.int32)
            tiles = 2 if number == 12 else 1
            unit = ImageUnit(str(tmp_path / f"{'good' if number else 'gone'}.png"), None, (tiles, 1), tiles)
            writer.add(CONTEXT, f"d:{number}", Encoded(ids, ids, (unit,)), ())
    source = loader(tmp_path, "d")
    packs = take(source, 13 * 40)
    chosen = [other for pack in packs for _, other in pack.stand_ins]
    assert set(chosen) == {f"d:{number}" for number in (2, 4, 6, 8, 10)}
    assert len(chosen) == 40
    assert all(sum(len(sample.input_ids) for sample in pack.samples) <= CONTEXT for pack in packs)


def test_a_way_with_bad_media_that_is_not_there_is_named(with_bad_pictures: Path):
    with pytest.raises(ValueError, match="there is no bad_media 'substitue'; use substitute, blank, leave_out"):
        loader(with_bad_pictures, "d", bad_media="substitue")


def test_counts_of_bad_media_survive_a_resume_and_stay_small(with_bad_pictures: Path):
    first = loader(with_bad_pictures, "d", context_length=4 * 8)
    take(first, 30)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(with_bad_pictures, "d", context_length=4 * 8)
    second.load_state_dict(state)
    assert second.report == first.report
    assert (first.report.packs, first.report.failed, len(first.report.first)) == (30, 30, 20)
    take(second, 1)
    assert (second.report.packs, second.report.failed) == (31, 31)
    long = Pack((), tuple(("folder/" * 100 + str(n), "\u4e0d" * 1000) for n in range(50)), 0)
    second.report.add(long)
    second.report.first.clear()
    second.report.add(long)
    assert len(json.dumps(second.state_dict())) < 100_000
    assert second.report.first[0][0].endswith("/0")


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\U0001f984", "\x01", "\udcff"])
def test_the_failures_of_a_report_are_bounded_as_json_writes_them(letter: str):
    report = LoadReport()
    report.add(Pack((), tuple((letter * 5000 + str(n), letter * 5000) for n in range(50)), 0))
    state = json.dumps(report.state())
    assert len(state) < 26_000
    assert len(report.first) == 20
    assert report.first[7][0].endswith(letter * 40 + "7")
    assert report.first[7][1].startswith(letter * 40)
    assert LoadReport.from_state(json.loads(state)) == report
