"""Conversions to LMDB and back: every byte returns, a kill costs nothing, and what cannot be stored is listed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from eagle_data.annotations import Reject, read_annotations
from eagle_data.errors import MediaError
from eagle_data.images import load_image
from eagle_data.lmdb_convert import checksums_of, to_lmdb
from eagle_data.lmdb_exports import from_lmdb
from eagle_data.lmdb_sources import key_of, name_of
from eagle_data.lmdb_store import LmdbStore, write_lmdb
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from .media_files import number_in, numbered_picture


def values(count: int) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    names = ["a b.png", "übung/1.png", "100%.png", *(f"d{n % 3}/{n}.jpg" for n in range(count - 3))]
    return {name: b"\xff\xd8" + generator.bytes(int(generator.integers(1, 900))) for name in names}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_source(kind: str, folder: Path, members: dict[str, bytes]) -> Path:
    if kind == "folder":
        for name, data in members.items():
            (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "files" / name).write_bytes(data)
        return folder / "files"
    if kind == "parquet":
        table = pa.table({"key": list(members), "image": list(members.values())})
        parquet.write_table(table, folder / "s.parquet", row_group_size=7)
        return folder / "s.parquet"
    return write_tar(folder / f"s.{kind}", members, {"tar": "w", "tar.gz": "w:gz"}[kind])


def content(path: Path) -> dict[str, bytes]:
    """What an export holds, read by other means than the code under test."""
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    if path.suffix == ".parquet":
        rows = parquet.read_table(path).to_pylist()
        return {row["key"]: row["image"] for row in rows}
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet", "folder"])
@pytest.mark.parametrize("back", ["x.tar", "x.parquet", "x"])
def test_every_byte_comes_back(kind: str, back: str, tmp_path: Path) -> None:
    members = values(40)
    report = to_lmdb(write_source(kind, tmp_path, members), tmp_path / "store", batch_bytes=3000)
    assert (report.entries, report.stored, report.rejected) == (40, 40, 0)
    assert report.bytes == sum(map(len, members.values()))
    store = LmdbStore(tmp_path / "store")
    assert {name_of(key): store.get(key) for key in list(store.keys())} == members
    assert checksums_of(tmp_path / "store").keys() == set(store.keys())
    exported = from_lmdb(tmp_path / "store", tmp_path / back, shard_bytes=4000)
    assert exported.stored == 40
    assert content(tmp_path / back) == members
    assert not list(tmp_path.glob("*.part"))


@given(st.text(max_size=40))
def test_every_name_has_an_ascii_key_of_its_own(name: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return
    key = key_of(name)
    assert key.isascii()
    assert name_of(key) == name


RUN = """
import sys, time
from eagle_data.lmdb_convert import to_lmdb
from eagle_data.lmdb_exports import from_lmdb
source, out, way = sys.argv[1:]
slow = lambda step, done, total: (print(step, done, flush=True), time.sleep(0.02))
if way == "to":
    to_lmdb(source, out, batch_bytes=500, progress=slow)
else:
    from_lmdb(source, out, shard_bytes=500, progress=slow)
"""


def killed(source: Path, out: Path, way: str, after: int) -> None:
    """Start a conversion and kill it with SIGKILL when it has told of its progress `after` times."""
    with subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out), way], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(after):
            assert child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_conversion_that_was_killed_goes_on_where_it_was(kind: str, tmp_path: Path) -> None:
    members = values(120)
    source = write_source(kind, tmp_path, members)
    for after in (5, 9):
        killed(source, tmp_path / "store", "to", after)
        assert not (tmp_path / "store").exists()
    report = to_lmdb(source, tmp_path / "store")
    assert report.resumed >= 14
    assert (report.entries, report.stored) == (120, 120)
    store = LmdbStore(tmp_path / "store")
    assert {name_of(key): store.get(key) for key in list(store.keys())} == members
    again = to_lmdb(source, tmp_path / "store")
    assert (again.resumed, again.stored) == (120, 120)


def test_a_line_torn_by_a_kill_and_values_without_a_line_are_done_again(tmp_path: Path) -> None:
    members = values(60)
    source = write_source("tar", tmp_path, members)
    killed(source, tmp_path / "store", "to", 6)
    log = tmp_path / "store.part" / "done.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]) + lines[-3][:17])
    report = to_lmdb(source, tmp_path / "store")
    assert report.resumed == len(lines) - 3
    assert report.stored == 60


@pytest.mark.parametrize("back", ["x.tar", "x.parquet", "x"])
def test_an_export_that_was_killed_goes_on_where_it_was(back: str, tmp_path: Path) -> None:
    members = values(400)
    to_lmdb(write_source("tar", tmp_path, members), tmp_path / "store")
    killed(tmp_path / "store", tmp_path / back, "from", 3)
    assert not (tmp_path / back).exists()
    report = from_lmdb(tmp_path / "store", tmp_path / back, shard_bytes=500)
    assert 100 < report.resumed <= 400
    assert content(tmp_path / back) == members


def test_an_archive_cut_inside_a_member_is_gone_on_with(tmp_path: Path) -> None:
    members = values(30)
    to_lmdb(write_source("tar", tmp_path, members), tmp_path / "store")
    from_lmdb(tmp_path / "store", tmp_path / "x.tar")
    whole = (tmp_path / "x.tar").read_bytes()
    for cut in (0, 100, 512, 5000, 9999, len(whole) - 20):
        (tmp_path / "y.tar.part").write_bytes(whole[:cut])
        from_lmdb(tmp_path / "store", tmp_path / "y.tar")
        assert content(tmp_path / "y.tar") == members
        (tmp_path / "y.tar").unlink()


@pytest.mark.parametrize("back", ["x.tar", "x.parquet", "x"])
def test_an_unfinished_export_of_another_store_is_not_passed_off_as_this_one(back: str, tmp_path: Path) -> None:
    members = values(60)
    for name, count in (("big", 60), ("small", 20)):
        to_lmdb(write_source("tar", tmp_path, dict(list(members.items())[:count])), tmp_path / name)
    from_lmdb(tmp_path / "big", tmp_path / back)
    (tmp_path / back).rename(tmp_path / f"{back}.part")
    with pytest.raises(MediaError, match="does not hold the store's names"):
        from_lmdb(tmp_path / "small", tmp_path / back)
    assert not (tmp_path / back).exists()


def test_an_empty_store_becomes_an_empty_result(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "store", [])
    for back in ("x.tar", "x"):
        assert from_lmdb(tmp_path / "store", tmp_path / back).stored == 0
        assert content(tmp_path / back) == {}


def test_two_foreign_keys_that_become_one_name_are_refused(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "store", [("100%", b"one"), ("100%25", b"two")])
    with pytest.raises(MediaError, match="does not hold the store's names"):
        from_lmdb(tmp_path / "store", tmp_path / "x.tar")


def test_a_value_changed_on_the_way_is_found_and_the_result_does_not_appear(tmp_path: Path) -> None:
    source = write_source("tar", tmp_path, values(60))
    killed(source, tmp_path / "store", "to", 6)
    key = LmdbStore(tmp_path / "store.part").keys()[0]
    write_lmdb(tmp_path / "store.part", [(key, b"something else")])
    with pytest.raises(MediaError, match=r"does not read back|two values"):
        to_lmdb(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_that_differs_from_its_checksums_is_not_exported(tmp_path: Path) -> None:
    to_lmdb(write_source("tar", tmp_path, values(5)), tmp_path / "store")
    write_lmdb(tmp_path / "store", [("a b.png", b"other")])
    with pytest.raises(MediaError, match="differs from its checksum"):
        from_lmdb(tmp_path / "store", tmp_path / "x.tar")
    write_lmdb(tmp_path / "store", [("more", b"other")])
    with pytest.raises(MediaError, match="other keys"):
        from_lmdb(tmp_path / "store", tmp_path / "x.tar")


def test_what_cannot_be_stored_is_listed_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("a", b"one"), ("a", b"two"), ("a", b"one"), ("p", b"\x80\x04."), ("k" * 600, b"long")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    report = to_lmdb(path, tmp_path / "store")
    assert (report.entries, report.stored, report.rejected) == (6, 1, 4)
    assert LmdbStore(tmp_path / "store").get("a") == b"one"
    rejects = [json.loads(line) for line in (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()]
    for reject, words in zip(rejects, ("two values", "pickle", "1 to 511", "is a link"), strict=True):
        assert words in reject["reason"]


def test_annotations_name_the_store_and_then_the_files_again(tmp_path: Path) -> None:
    media = tmp_path / "media"
    (media / "sub").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(numbered_picture(number)).save(media / "sub" / f"ä{number}.png")
    write_lmdb(media / "old", [("k", (media / "sub" / "ä3.png").read_bytes())])
    talk = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A number."}]}
    records = [
        {"image": "sub/ä0.png", **talk},
        {"image": ["sub/ä1.png", {"image": "sub/ä0.png"}], **talk},
        {"data": [{"type": "image", "image_list": ["sub/ä2.png", {"lmdb_file": "old", "lmdb_key": "k"}]}], **talk},
        {"image": "gone.png", **talk},
        talk,
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*map(json.dumps, records), "{broken"]) + "\n")
    report = to_lmdb(path, tmp_path / "store", root=media)
    assert (report.entries, report.stored, report.rejected) == (5, 4, 1)

    def numbers(annotations: Path) -> list[object]:
        found: list[object] = []
        for sample in read_annotations(annotations, dataset="d", root=media):
            if isinstance(sample, Reject):
                found.append(sample.kind)
                continue
            try:
                found.append([number_in(np.asarray(load_image(ref.source))) for ref in sample.images])
            except MediaError as error:
                found.append(error.kind)
        return found

    expected = [[0], [1, 0], [2, 3], "missing media", [], "not JSON"]
    assert numbers(path) == expected
    assert numbers(tmp_path / "store.jsonl") == expected
    assert '"lmdb_file": "../store"' in (tmp_path / "store.jsonl").read_text()
    for file in (media / "sub").iterdir():
        file.unlink()
    from_lmdb(tmp_path / "store", media / "back", annotations=tmp_path / "store.jsonl", root=media)
    assert numbers(media / "back.jsonl") == expected
    assert '"image": "back/sub/ä0.png"' in (media / "back.jsonl").read_text()


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a//b", "a\\b"])
def test_a_key_cannot_lead_out_of_the_folder(key: str, tmp_path: Path) -> None:
    write_lmdb(tmp_path / "store", [(key, b"value")])
    with pytest.raises(MediaError, match="no relative path"):
        from_lmdb(tmp_path / "store", tmp_path / "deep" / "out")
    assert not (tmp_path / "x").exists()


def test_a_huggingface_table_and_a_folder_of_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for shard in range(2):
        rows = [{"bytes": bytes([65 + shard, number]), "path": None} for number in range(3)]
        parquet.write_table(pa.table({"image": rows, "label": [1, 2, 3]}), tmp_path / "t" / f"{shard}.parquet")
    to_lmdb(tmp_path / "t", tmp_path / "store")
    assert LmdbStore(tmp_path / "store").get("1/2") == bytes([66, 2])
    with pytest.raises(MediaError, match="has no column 'none'"):
        to_lmdb(tmp_path / "t", tmp_path / "other", column="none")


def test_existing_results_and_unusable_sources_are_refused(tmp_path: Path) -> None:
    source = write_source("tar", tmp_path, values(4))
    (tmp_path / "taken").mkdir()
    with pytest.raises(MediaError, match="not the result of this conversion"):
        to_lmdb(source, tmp_path / "taken")
    to_lmdb(source, tmp_path / "store")
    time.sleep(0.01)
    write_tar(source, values(5))
    with pytest.raises(MediaError, match="not the result of this conversion"):
        to_lmdb(source, tmp_path / "store")
    with pytest.raises(MediaError, match="exists"):
        from_lmdb(tmp_path / "store", tmp_path / "taken")
    with pytest.raises(MediaError, match="no such file"):
        to_lmdb(tmp_path / "none.tar", tmp_path / "x")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MediaError, match="no known kind"):
        to_lmdb(tmp_path / "notes.txt", tmp_path / "x")
    (tmp_path / "cut.tar").write_bytes(source.read_bytes()[:700])
    with pytest.raises(MediaError, match="cannot be read on"):
        to_lmdb(tmp_path / "cut.tar", tmp_path / "x")
