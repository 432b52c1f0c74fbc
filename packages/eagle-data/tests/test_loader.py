"""The loader: one endless stream that seed and epoch fix, shared by ranks, resumed exactly, loaded by workers."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.collate import collate
from eagle_data.encode import Encoded, ImageUnit
from eagle_data.loader import Pack, Source, StatefulLoader
from eagle_data.prepared import PreparedDataset
from eagle_data.prepared_writer import PreparedWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .loader_parts import CONTEXT, epoch, loader, names, take
from .made_up_rows import made_up

ROWS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets: `text` without media, `mixed` in which every other row has a picture."""
    base = tmp_path_factory.mktemp("prepared")
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)).save(base / "a.png")
    for name in ("text", "mixed"):
        (base / name).mkdir()
        with PreparedWriter(base / name, [CONTEXT]) as writer:
            for number in range(ROWS):
                ids = np.full(number % 11 + 3, number, dtype=np.int32)
                units = (ImageUnit(str(base / "a.png"), None, (2, 1), 3),) if name == "mixed" and number % 2 else ()
                writer.add(CONTEXT, f"{name}:{number}", Encoded(ids, ids, units), ())
    return base


def test_an_epoch_holds_every_sample_once_within_the_budgets(folder: Path):
    packs = epoch(loader(folder, max_tiles=6))
    assert Counter(name for pack in names(packs) for name in pack) == {
        f"{n}:{i}": 1 for n in ("text", "mixed") for i in range(ROWS)
    }
    for pack in packs:
        assert sum(len(sample.input_ids) for sample in pack.samples) <= CONTEXT
        assert sum(len(sample.pixels) for sample in pack.samples) <= 6
        assert pack.failures == ()


def test_the_next_epoch_comes_after_the_last_and_in_another_order(folder: Path):
    source = loader(folder)
    first = len(source.epoch_packs(0))
    packs = take(source, first + len(source.epoch_packs(1)))
    assert [pack.epoch for pack in packs] == [0] * first + [1] * (len(packs) - first)
    one, two = names(packs[:first]), names(packs[first:])
    assert sorted(chain.from_iterable(one)) == sorted(chain.from_iterable(two))
    assert one != two


def test_seed_and_epoch_fix_the_stream_and_another_seed_changes_it(folder: Path):
    assert names(epoch(loader(folder))) == names(epoch(loader(folder)))
    assert names(epoch(loader(folder))) != names(epoch(loader(folder, seed=6)))


@given(before=st.integers(0, 30), after=st.integers(1, 12), workers=st.sampled_from([0, 2]))
@settings(deadline=None, max_examples=25)
def test_a_resumed_loader_goes_on_exactly_where_the_state_was_taken(before: int, after: int, workers: int, folder: Path):
    whole = names(take(loader(folder), before + after))
    first = loader(folder, workers=workers)
    stream = iter(first)
    begun = list(islice(stream, before))
    state = first.state_dict()
    second = loader(folder, workers=workers)
    second.load_state_dict(state)
    assert names(begun) + names(take(second, after)) == whole


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_one_stream_without_loss_or_repetition(world: int, folder: Path):
    whole = names(take(loader(folder, global_batch=world), 7 * world))
    parts = [names(take(loader(folder, rank=rank, world=world), 7)) for rank in range(world)]
    assert [pack for turn in zip(*parts, strict=True) for pack in turn] == whole


def test_a_state_is_good_for_another_world_size(folder: Path):
    whole = names(take(loader(folder, global_batch=6), 12))
    ranks = [loader(folder, rank=rank, world=3, global_batch=6) for rank in range(3)]
    for source in ranks:
        take(source, 2)
    assert len({source.state_dict()["consumed"] for source in ranks}) == 1
    parts = []
    for rank in range(2):
        source = loader(folder, rank=rank, world=2, global_batch=6)
        source.load_state_dict(ranks[0].state_dict())
        parts.append(names(take(source, 3)))
    assert [pack for turn in zip(*parts, strict=True) for pack in turn] == whole[6:]


def test_a_state_that_cannot_be_continued_is_refused(folder: Path):
    with pytest.raises(ValueError, match="seed 9, this loader from 5"):
        loader(folder).load_state_dict(loader(folder, seed=9).state_dict())
    with pytest.raises(ValueError, match="other data, repeats or packing"):
        loader(folder).load_state_dict(loader(folder, "text").state_dict())
    with pytest.raises(ValueError, match=r"the state of the loader lacks seed, data, consumed, .*give what state_dict returned"):
        loader(folder).load_state_dict({})
    state = loader(folder).state_dict()
    del state["place"]
    with pytest.raises(ValueError, match="the state of the loader lacks place;"):
        loader(folder).load_state_dict(state)
    with pytest.raises(ValueError, match="global_batch 4 cannot be shared by 3 ranks; use a multiple of 3"):
        loader(folder, world=3, global_batch=4)


def test_workers_give_the_same_packs_with_the_same_pixels(folder: Path):
    plain, ahead = (take(loader(folder, augment=True, workers=workers), 12) for workers in (0, 2))
    assert names(plain) == names(ahead)
    for a, b in zip(plain, ahead, strict=True):
        assert all(np.array_equal(x.pixels, y.pixels) for x, y in zip(a.samples, b.samples, strict=True))


def test_a_fractional_repeat_draws_the_part_anew_each_epoch(folder: Path):
    source = loader(folder, "text", repeat=1.5)
    parts = []
    for number in (0, 1):
        counts = Counter(row for members in source.epoch_packs(number) for _, row in members)
        assert set(counts) == set(range(ROWS))
        assert sum(counts.values()) - ROWS in (ROWS // 2, ROWS // 2 + 1)
        parts.append({row for row, count in counts.items() if count == 2})
    assert parts[0] != parts[1]


def test_augmentation_differs_between_epochs_and_repeats_within_one(folder: Path):
    def pixels(number: int) -> dict[str, np.ndarray]:
        source = loader(folder, "mixed", augment=True)
        before = sum(len(source.epoch_packs(e)) for e in range(number))
        packs = take(source, before + len(source.epoch_packs(number)))[before:]
        return {sample.where: sample.pixels for pack in packs for sample in pack.samples if len(sample.pixels)}

    first, again, second = pixels(0), pixels(0), pixels(1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_that_share_packs_decode_every_tile_once(workers: int, folder: Path):
    """Rank 0 has the even tiles of a pack, rank 1 the odd ones; samples and tokens are the whole pack's on both."""

    def load(rank: int) -> Any:
        return lambda samples: lambda tile: range(sum(sample.tiles for sample in samples))[tile] % 2 == rank

    whole = take(loader(folder, "mixed", augment=True), 12)
    ranks = [take(loader(folder, "mixed", augment=True, workers=workers, load=load(rank)), 12) for rank in (0, 1)]
    assert sum(len(sample.pixels) for pack in whole for sample in pack.samples) >= 12
    for pack, *shares in zip(whole, *ranks, strict=True):
        assert names([pack]) == names([shares[0]]) == names([shares[1]])
        tiles = np.concatenate([sample.pixels for sample in pack.samples])
        for rank, share in enumerate(shares):
            assert np.array_equal(np.concatenate([sample.pixels for sample in share.samples]), tiles[rank::2])
            assert all(
                np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.labels, b.labels)
                for a, b in zip(pack.samples, share.samples, strict=True)
            )


def test_a_rank_opens_only_the_files_whose_tiles_it_loads(tmp_path: Path):
    """A file that is gone is met, and reported, by the rank that owns its tile; its sample stays in the pack of both."""
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        for number, name in enumerate(["good", "gone"]):
            ids = np.full(4, number, dtype=np.int32)
            writer.add(
                CONTEXT, f"d:{number}", Encoded(ids, ids, (ImageUnit(str(tmp_path / f"{name}.png"), None, (1, 1), 1),)), ()
            )
    found = {}
    for own in (True, False):
        choice = lambda samples, own=own: lambda tile: ("gone" in samples[tile].units[0].path) == own  # noqa: E731
        [pack] = take(loader(tmp_path, "d", load=choice), 1)
        assert sorted(sample.where for sample in pack.samples) == ["d:0", "d:1"]
        found[own] = pack
    [(where, reason)] = found[True].failures
    assert where == "d:1"
    assert "gone.png: no such file" in reason
    assert [sample.pixels.shape[0] for sample in found[True].samples if sample.where == "d:1"] == [1]
    assert not any(sample.pixels.any() for sample in found[True].samples)
    assert found[False].failures == ()


def digests(packs: list[Pack]) -> list[str]:
    """A hash of every array of each pack's batch, by byte, with the samples it holds."""
    found = []
    for pack in packs:
        batch = collate(pack.samples, tile_size=8, weighting="sqrt_sample")
        digest = hashlib.sha256(repr((pack.position, pack.epoch, batch.provenance)).encode())
        for name in batch.__dataclass_fields__:
            if name != "provenance":
                digest.update(name.encode() + getattr(batch, name).tobytes())
        found.append(digest.hexdigest())
    return found


def test_global_batches_are_the_same_bytes_for_every_number_of_ranks_and_workers(folder: Path):
    """Over more than an epoch, so that one ends within a batch, with augmented pictures in a mixture."""
    steps = 3
    expected = None
    for world in (1, 2, 3, 4, 6):
        for workers in (0, 1, 2):
            options: dict[str, Any] = {"augment": True, "repeat": 1.4, "world": world, "global_batch": 12, "workers": workers}
            ranks = [digests(take(loader(folder, rank=rank, **options), steps * 12 // world)) for rank in range(world)]
            stream = [digest for turn in zip(*ranks, strict=True) for digest in turn]
            expected = expected or stream
            assert stream == expected, (world, workers)
    assert len(set(expected or ())) == steps * 12 > 12 + len(loader(folder, repeat=1.4).epoch_packs(0))


def test_ranks_have_the_same_state_and_each_may_keep_its_own_counts(folder: Path):
    ranks = [loader(folder, rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        take(rank, 3)
    assert ranks[0].state_dict() == ranks[1].state_dict()
    again = loader(folder, rank=1, world=2)
    again.load_state_dict(ranks[1].state_dict(counts=True))
    assert again.report == ranks[1].report
    assert again.report.packs == 3


def test_a_state_of_other_data_of_the_same_lengths_is_refused():
    def made(name: str, digest: str | None = None) -> StatefulLoader:
        rows: Any = made_up(50, 60, name=name)
        if digest is not None:
            rows.digest = digest
        return StatefulLoader([Source(rows)], context_length=64, tile_size=8, seed=0, workers=0)

    for first, second in ((made("a"), made("b")), (made("a", "1"), made("a", "2"))):
        take(first, 5)
        with pytest.raises(ValueError, match="taken with other data"):
            second.load_state_dict(first.state_dict())
        second.load_state_dict(first.state_dict(), strict=False)
        assert take(second, 1)[0].position == 5


def test_a_prepared_dataset_is_told_by_the_key_of_its_preparation(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "text", tmp_path / "text")
    states = []
    for key in ("1", "2", "1"):
        (tmp_path / "text" / "done.json").write_text(json.dumps({"key": key}))
        states.append(loader(tmp_path, "text").state_dict()["data"])
    if getattr(PreparedDataset(tmp_path / "text", CONTEXT), "digest", None) is None:
        assert states[0] == states[2] != states[1]


def test_an_older_iterator_says_so_instead_of_going_on(folder: Path):
    source = loader(folder)
    state = source.state_dict()
    stale = iter(source)
    next(stale)
    for move in (lambda: next(iter(source)), lambda: source.load_state_dict(state), lambda: source.seek(9)):
        move()
        with pytest.raises(RuntimeError, match=r"this iterator is not live any more.*take packs from a new iter"):
            next(stale)
        stale = iter(source)
        next(stale)
    far = iter(source)
    list(islice(far, 200))
    expected = source.state_dict()["consumed"]
    again = loader(folder)
    again.load_state_dict(source.state_dict())
    assert next(iter(again)).position == expected == 10 + 200


def test_without_an_exact_place_the_stream_goes_on_at_the_same_number_of_packs(folder: Path):
    whole = names(take(loader(folder), 20))
    other = loader(folder, seed=5, buffer=3)
    take(other, 13)
    source = loader(folder)
    source.load_state_dict(other.state_dict(), strict=False)
    assert names(take(source, 7)) == whole[13:]


def test_counted_epochs_are_in_the_state(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = loader(folder), loader(folder)
    packs = first.packs_in_epoch(3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    monkeypatch.setattr(second._stream, "epoch_packs", lambda epoch: iter(()))
    assert (second.packs_in_epoch(3), second.packs_in_epoch(4)) == (packs, 0)


def test_a_loader_packs_in_the_mode_that_it_is_given(folder: Path):
    assert all(len(pack.samples) == 1 for pack in take(loader(folder, mode="unpacked"), 60))
    grouped = [len(pack.samples) for pack in take(loader(folder, mode="grouped", group=2), 20)]
    assert set(grouped) == {1, 2} or set(grouped) == {2}
    spans = [
        np.ptp([len(sample.input_ids) for sample in pack.samples]) for pack in take(loader(folder, mode="grouped", group=2), 20)
    ]
    assert np.mean(spans) < 1.5 < np.mean([np.ptp([len(s.input_ids) for s in pack.samples]) for pack in take(loader(folder), 20)])


def test_copies_of_a_picture_in_one_epoch_are_augmented_differently(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "d").mkdir()
    with PreparedWriter(tmp_path / "d", [CONTEXT]) as writer:
        ids = np.full(4, 1, dtype=np.int32)
        writer.add(CONTEXT, "d:0", Encoded(ids, ids, (ImageUnit(str(tmp_path / "a.png"), None, (1, 1), 1),)), ())
    source = loader(tmp_path, "d", repeat=6.0, augment=True, tile_size=32)
    [pack] = take(source, 1)
    assert len({sample.pixels.tobytes() for sample in pack.samples}) > 1
    assert len(pack.samples) == 6


class Meeting:
    """Media loading that waits until `together` packs are being loaded at once, and counts the packs begun."""

    def __init__(self, together: int):
        self.barrier = threading.Barrier(together)
        self.begun = 0
        self.lock = threading.Lock()

    def __call__(self, units: Any, **_: Any) -> np.ndarray:
        with self.lock:
            self.begun += 1
        self.barrier.wait(timeout=10)
        return np.zeros((0, 3, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_load_packs_at_the_same_time(workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eagle_data.pack_loading.load_units", Meeting(workers))
    source = loader(folder, workers=workers, prefetch=2 * workers, mode="unpacked")
    assert len(take(source, 2)) == 2


@pytest.mark.parametrize("prefetch", [1, 5])
def test_packs_are_loaded_ahead_as_far_as_asked(prefetch: int, folder: Path, monkeypatch: pytest.MonkeyPatch):
    meeting = Meeting(1)
    monkeypatch.setattr("eagle_data.pack_loading.load_units", meeting)
    stream = iter(loader(folder, workers=1, prefetch=prefetch, mode="unpacked"))
    next(stream)
    deadline = time.monotonic() + 10
    while meeting.begun < 1 + prefetch and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert meeting.begun == 1 + prefetch
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_an_abandoned_iterator_stops_its_threads(folder: Path):
    stream = iter(loader(folder, workers=2))
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("eagle-loader")]


def test_nothing_to_load_is_an_error_with_the_mend(tmp_path: Path, folder: Path):
    (tmp_path / "none").mkdir()
    with PreparedWriter(tmp_path / "none", [CONTEXT]):
        pass
    with pytest.raises(ValueError, match=r"no prepared sample fits context_length 32 \(datasets: none\)"):
        loader(tmp_path, "none")
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"):
        loader(folder, rank=2, world=2)
    with pytest.raises(ValueError, match="raise repeat_time"):
        take(loader(folder, "text", repeat=0.001), 1)
