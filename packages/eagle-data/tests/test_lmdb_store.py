"""LMDB stores: what is written is read back, by every process, and pickles stay shut."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest
from eagle_data.errors import MediaError
from eagle_data.lmdb_store import LmdbStore, read_lmdb, write_lmdb


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    assert write_lmdb(path, [(f"image-{i}", b"\x89PNG" + bytes([i])) for i in range(5)]) == 5
    return path


def test_what_was_written_is_read_back(store: Path) -> None:
    assert read_lmdb(store, "image-3") == b"\x89PNG\x03"
    opened = LmdbStore(store)
    assert len(opened) == 5
    assert opened["image-0"] == opened.get("image-0") == b"\x89PNG\x00"
    assert "image-4" in opened
    assert "image-5" not in opened
    assert opened.keys() == [f"image-{i}" for i in range(5)]


def test_a_single_file_store_is_read_too(store: Path) -> None:
    assert read_lmdb(store / "data.mdb", "image-1") == b"\x89PNG\x01"


def test_writing_again_adds_and_replaces_and_open_readers_see_it(store: Path) -> None:
    opened = LmdbStore(store)
    assert opened.get("image-0") == b"\x89PNG\x00"
    write_lmdb(store, [("image-0", b"new"), ("more", b"x")])
    assert opened.get("image-0") == b"new"
    assert len(opened) == 6


def test_a_store_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lmdb

    opened = lmdb.open
    monkeypatch.setattr(lmdb, "open", lambda path, **options: opened(path, **{**options, "map_size": 1 << 20}))
    value = bytes(range(256)) * 1024
    assert write_lmdb(tmp_path / "big", [(str(i), value) for i in range(40)]) == 40
    monkeypatch.undo()
    assert all(read_lmdb(tmp_path / "big", str(i)) == value for i in range(40))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_values_are_refused_on_both_sides(tmp_path: Path, protocol: int) -> None:
    import lmdb

    value = pickle.dumps({"image": b"..."}, protocol)
    with pytest.raises(MediaError, match="pickle"):
        write_lmdb(tmp_path / "mine", [("k", value)])
    with lmdb.open(str(tmp_path / "theirs")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"k", value)
    with pytest.raises(MediaError, match=r"theirs\[k\].*pickle"):
        read_lmdb(tmp_path / "theirs", "k")


def test_missing_stores_and_keys_name_themselves(store: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"store\[nothing\]: no such key"):
        read_lmdb(store, "nothing")
    with pytest.raises(MediaError, match="nowhere: no LMDB store here"):
        read_lmdb(tmp_path / "nowhere", "k")
    with pytest.raises(MediaError, match="ASCII"):
        read_lmdb(store, "schlüssel")
    (tmp_path / "text.mdb").write_text("not a database")
    with pytest.raises(MediaError, match=r"text\.mdb: is not a readable LMDB store"):
        read_lmdb(tmp_path / "text.mdb", "k")
    with pytest.raises(MediaError, match="1 to 511"):
        write_lmdb(store, [("k" * 512, b"v")])


def read_in_child(path: str, results: multiprocessing.SimpleQueue) -> None:
    results.put((os.getpid(), read_lmdb(path, "image-2")))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_reads_a_store_that_its_parent_has_open(store: Path, method: str) -> None:
    assert read_lmdb(store, "image-2") == b"\x89PNG\x02"
    context = multiprocessing.get_context("fork") if method == "fork" else multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    # A spawned child imports its target by name, which a test module has not; the package's own function has.
    target, args = (read_in_child, (str(store), results)) if method == "fork" else (read_lmdb, (str(store), "image-2"))
    child = context.Process(target=target, args=args)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    if method == "fork":
        assert results.get() == (child.pid, b"\x89PNG\x02")
    assert read_lmdb(store, "image-2") == b"\x89PNG\x02"


def test_many_threads_share_one_store(store: Path) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(200):
            number = (seed + i) % 5
            if read_lmdb(store, f"image-{number}") != b"\x89PNG" + bytes([number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_store_object_can_be_sent_to_another_process(store: Path) -> None:
    assert pickle.loads(pickle.dumps(LmdbStore(store))).get("image-1") == b"\x89PNG\x01"
