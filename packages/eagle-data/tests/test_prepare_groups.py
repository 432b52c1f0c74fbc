"""Preparation by groups: only what changed is redone, every engine gives the same bytes, and kills lose and repeat nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from eagle_data.ads import VisualRules
from eagle_data.annotation_files import chunks
from eagle_data.errors import EagleDataError
from eagle_data.group_engines import LocalPool, Task
from eagle_data.group_results import GroupStore
from eagle_data.group_work import LATER, GroupSettings, GroupWorker, group_key
from eagle_data.media_index import PreparedMedia
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer
from PIL import Image

from .corpus_files import BAD, GOOD, talk, write_media
from .media_files import numbered_picture

RULES = VisualRules(tile_size=32, tokens_per_tile=4, max_tiles=6, min_frames=4)
SHORT, LONG = 160, 512
LINES = 1000
SMALL = {"_LEAST": 1, "_MOST": 4, "_ONE_OF": 2}


@dataclass
class Corpus:
    """A thousand lines, every tenth of them good or bad in some way of its own, and where they are prepared."""

    folder: Path
    tokenizer: PromptTokenizer
    records: list[Any]

    @property
    def annotation(self) -> Path:
        return self.folder / "a.jsonl"

    def write(self) -> None:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in self.records]
        self.annotation.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def prepare(self, out: str = "out", **options: Any) -> DatasetReport:
        entry = DatasetEntry(annotation=self.annotation, root=self.folder / "media")
        settings: dict[str, Any] = {"context_lengths": {"d": [SHORT, LONG]}, "rules": RULES, "tokenizer": self.tokenizer}
        return prepare({"d": entry}, self.folder / out, **{**settings, **options})["d"]

    def files(self, out: str = "out") -> dict[str, bytes]:
        """What a preparation leaves, apart from the results of its groups."""
        paths = [path for path in (self.folder / out).rglob("*") if path.is_file() and "row-groups" not in path.parts]
        return {path.relative_to(self.folder / out).as_posix(): path.read_bytes() for path in paths}

    def groups(self, out: str = "out") -> dict[str, int]:
        """When each group's result was written."""
        paths = (self.folder / out / "d" / "row-groups").rglob("*")
        return {path.name: path.stat().st_mtime_ns for path in paths if path.is_file()}

    def shards(self, out: str = "out") -> dict[str, tuple[int, int]]:
        """Which file each shard of the longer context is, and when it was written."""
        paths = (self.folder / out / "d" / f"context-{LONG}").glob("rows-*.parquet")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}

    def redone(self, change: Callable[[], Any]) -> int:
        """How many groups a preparation writes after a change."""
        before = self.groups()
        change()
        self.prepare()
        after = self.groups()
        assert not any(name.endswith(".part") for name in after)
        return sum(before.get(name) != written for name, written in after.items())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 1 to 4 groups, so that a small corpus has several."""
    for name, value in SMALL.items():
        monkeypatch.setattr(f"eagle_data.prepared_writer.{name}", value)


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: PromptTokenizer) -> Corpus:
    write_media(tmp_path / "media")
    for number in range(3):
        Image.fromarray(numbered_picture(number, 40, 30)).save(tmp_path / "media" / f"only-{number}.png")
    own = [*GOOD, *(record for record, _ in BAD)]
    records: list[Any] = [own[n // 10 % len(own)] if n % 10 == 0 else talk(f"Number {n}?", f"It is {n}.") for n in range(LINES)]
    for number, at in enumerate((55, 505, 905)):
        records[at] = {"image": f"only-{number}.png", **talk()}
    corpus = Corpus(tmp_path, tokenizer, records)
    corpus.write()
    return corpus


def test_every_number_of_workers_gives_the_same_bytes_and_the_report_adds_up(corpus: Corpus):
    reports = [corpus.prepare(f"out-{workers}", workers=workers) for workers in (0, 1, 2)]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].read == LINES
    assert reports[0].prepared + reports[0].rejected == LINES
    files = [corpus.files(f"out-{workers}") for workers in (0, 1, 2)]
    assert files[0] == files[1] == files[2]
    assert set(files[0]) >= {
        "d/context-160/index.parquet",
        "d/context-512/groups.parquet",
        "d/media-index.parquet",
        "d/done.json",
    }
    dataset = PreparedDataset(corpus.folder / "out-2" / "d", LONG)
    numbers = [int(dataset.where(row).rsplit(":", 1)[1]) for row in range(len(dataset))]
    assert numbers == sorted(set(numbers))
    rejects = [json.loads(line) for line in files[0]["rejects.jsonl"].decode().splitlines()]
    assert sorted([*numbers, *(entry["line"] for entry in rejects)]) == list(range(1, LINES + 1))
    assert {entry["file"] for entry in rejects} == {str(corpus.annotation)}
    assert PreparedMedia(corpus.folder / "out-2" / "d").index_of(str(corpus.folder / "media" / "good.mp4")) is not None


@pytest.mark.soak
def test_ray_gives_the_same_bytes(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    monkeypatch.setattr("eagle_data.group_ray._WAVE", 7)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    corpus.prepare("local")
    corpus.prepare("ray", engine="ray", workers=2)
    assert corpus.files("local") == corpus.files("ray")


def test_without_ray_its_engine_names_the_extra(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EagleDataError, match=r"install the extra, eagle-data\[ray\]"):
        corpus.prepare(engine="ray")
    with pytest.raises(ValueError, match="the engine is local or ray"):
        corpus.prepare(engine="spark")


WATCH = """
import sys
from pathlib import Path

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in {"ray", "torch", "dask", "transformers", "multiprocessing.pool", "tests"}:
            with Path(%r).open("a") as seen:
                seen.write(name + "\\n")

sys.meta_path.insert(0, Watch())
"""


def test_a_local_preparation_imports_no_framework_here_or_in_its_workers(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    (corpus.folder / "site").mkdir()
    (corpus.folder / "site" / "sitecustomize.py").write_text(WATCH % str(corpus.folder / "seen"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(corpus.folder / "site"), *sys.path]))
    subprocess.run(driver(corpus, 2), check=True)
    assert len(corpus.groups()) >= 8
    # The driver imports this file, which shows that imports are seen; workers import nothing of the kind either.
    assert (corpus.folder / "seen").read_text().splitlines() == ["tests"]


def test_only_the_groups_that_a_change_touches_are_redone(corpus: Corpus):
    corpus.prepare()
    count = len(corpus.groups())
    assert count >= 8

    def edit(first: int, lines: int) -> None:
        for at in range(first, first + lines):
            corpus.records[at] = talk(f"Edited {at}?")
        corpus.write()

    def insert() -> None:
        corpus.records.insert(0, talk("A new first line."))
        corpus.write()

    assert corpus.redone(lambda: None) == 0
    assert corpus.redone(lambda: edit(400, LINES // 100)) <= 3
    assert corpus.redone(insert) <= 3
    assert corpus.redone(lambda: os.utime(corpus.folder / "media" / "only-1.png", ns=(1, 1))) == 1
    assert corpus.redone((corpus.folder / "media" / "only-2.png").unlink) == 1
    # What was put together from kept groups is what a preparation from nothing gives.
    corpus.prepare("anew")
    assert {**corpus.files("anew"), "d/done.json": b""} == {**corpus.files(), "d/done.json": b""}
    key = [json.loads(corpus.files(out)["d/done.json"]) for out in ("out", "anew")]
    assert key[0] == key[1]


def test_shards_that_a_change_does_not_touch_are_not_written_again(corpus: Corpus, small_shards: None):
    # Text alone: where shards end follows from what rows hold, and rows with media hold their path, which differs in every run.
    corpus.records[:] = [talk(f"Number {n}?", f"It is {n}.") for n in range(LINES)]
    corpus.write()
    corpus.prepare()
    before = corpus.shards()
    assert len(before) >= 4
    changes: list[Callable[[], Any]] = [
        lambda: corpus.records.__setitem__(slice(400, 410), [talk(f"Edited {at}?") for at in range(10)]),
        lambda: corpus.records.insert(0, talk("A new first line.")),
        lambda: corpus.records.append(talk("A new last line.")),
    ]
    for change in changes:
        change()
        corpus.write()
        corpus.prepare()
        after = corpus.shards()
        assert 1 <= len(set(after.items()) - set(before.items())) <= 3
        assert set(after.items()) & set(before.items())
        before = after
    corpus.prepare("anew")
    assert corpus.files("anew") == corpus.files()


def test_a_change_that_makes_no_other_sample_writes_no_shard(corpus: Corpus, small_shards: None):
    corpus.prepare()
    before = corpus.shards()
    assert corpus.redone(lambda: os.utime(corpus.folder / "media" / "only-1.png", ns=(1, 1))) == 1
    assert corpus.shards() == before


def test_a_change_of_code_redoes_everything(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    corpus.prepare()
    count = len(corpus.groups())
    monkeypatch.setattr("eagle_data.group_work.code_version", lambda: "another")
    assert corpus.redone(lambda: None) == count


def test_code_that_comes_after_preparation_has_no_part_in_it():
    code = "import sys, eagle_data.prepare, eagle_data.group_ray; print(*(n for n in sys.modules if n.startswith('eagle_data.')))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    parts = {f"{name.split('.')[1]}" for name in output.split()}
    assert "group_work" in parts
    assert not [part for part in parts for pattern in LATER if fnmatch(part, pattern)]


def test_the_same_lines_twice_are_prepared_once(corpus: Corpus, tmp_path: Path):
    corpus.records = [talk(f"Number {n % 128}?") for n in range(128 * 6)]
    corpus.write()
    report = corpus.prepare(workers=2)
    assert report.prepared == len(corpus.records)
    dataset = PreparedDataset(corpus.folder / "out" / "d", LONG)
    assert [dataset.where(row).rsplit(":", 1)[1] for row in range(len(dataset))] == [str(n + 1) for n in range(len(dataset))]


def test_a_moved_annotation_file_keeps_its_groups_and_names_itself(corpus: Corpus):
    corpus.prepare()
    before = corpus.groups()
    corpus.annotation.rename(corpus.folder / "b.jsonl")
    entry = DatasetEntry(annotation=corpus.folder / "b.jsonl", root=corpus.folder / "media")
    options: dict[str, Any] = {"context_lengths": {"d": [SHORT, LONG]}, "rules": RULES, "tokenizer": corpus.tokenizer}
    prepare({"d": entry}, corpus.folder / "out", **options)
    assert corpus.groups() == before
    assert PreparedDataset(corpus.folder / "out" / "d", LONG).where(0).startswith(str(corpus.folder / "b.jsonl"))


@pytest.mark.parametrize("shards", ["there", "gone"])
@pytest.mark.parametrize("damage", ["header", "facts", "rows", "empty", "cut"])
def test_a_damaged_result_is_made_again(damage: str, shards: str, corpus: Corpus, small_shards: None):
    corpus.prepare()
    before = corpus.files()
    path = max((path for path in (corpus.folder / "out" / "d" / "row-groups").rglob("*") if path.is_file()), key=str)
    data = bytearray(path.read_bytes())
    if damage == "empty":
        data.clear()
    elif damage == "cut":
        del data[-5:]
    else:
        data[{"header": 60, "facts": data.index(b"\xff" * 4) + 40, "rows": -5}[damage]] ^= 0xFF
    path.write_bytes(data)
    (corpus.folder / "out" / "d" / "done.json").unlink()
    if shards == "gone":
        for shard in (corpus.folder / "out" / "d").glob("context-*/rows-*.parquet"):
            shard.unlink()
    corpus.prepare()
    assert corpus.files() == before


DRIVER = """
import sys
sys.path.insert(0, {path!r})
import eagle_data.prepared_writer
for name, value in {constants!r}.items():
    setattr(eagle_data.prepared_writer, name, value)
from pathlib import Path
from tests.test_prepare_groups import Corpus
from tests.toy_tokenizer import train_tokenizer
from eagle_data.tokens import PromptTokenizer

if __name__ == "__main__":
    Corpus(Path({folder!r}), PromptTokenizer(train_tokenizer()), []).prepare(workers={workers})
"""


def driver(corpus: Corpus, workers: int, constants: dict[str, int] | None = None) -> list[str]:
    """The command of a preparation in a process of its own, with other `constants` of the writer."""
    path = str(Path(__file__).parent.parent)
    code = DRIVER.format(path=path, folder=str(corpus.folder), workers=workers, constants=constants or {})
    return [sys.executable, "-c", code]


def kill_the_driver(corpus: Corpus, workers: int, enough: Callable[[], bool], constants: dict[str, int] | None = None) -> int:
    """Start a preparation and kill it once there is `enough`; the number of results that lie there when all is quiet."""
    with subprocess.Popen(driver(corpus, workers, constants)) as process:
        while process.poll() is None and not enough():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    time.sleep(1.0)
    return len([name for name in corpus.groups() if not name.endswith(".part")])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_driver_loses_at_most_the_groups_in_work_and_repeats_none(workers: int, corpus: Corpus):
    kept = kill_the_driver(corpus, workers, lambda: len(corpus.groups()) >= 3)
    assert kept >= 3
    assert not (corpus.folder / "out" / "d" / "done.json").exists()
    before = corpus.groups()
    corpus.prepare()
    after = corpus.groups()
    assert {name: written for name, written in before.items() if not name.endswith(".part")}.items() <= after.items()
    corpus.prepare("straight")
    assert corpus.files() == corpus.files("straight")


@pytest.mark.parametrize("count", [1, 3])
def test_a_driver_killed_while_it_writes_shards_keeps_those_that_are_whole(count: int, corpus: Corpus, small_shards: None):
    kill_the_driver(corpus, 0, lambda: len(corpus.shards()) >= count, SMALL)
    before = corpus.shards()
    assert len(before) >= count
    assert not (corpus.folder / "out" / "d" / f"context-{LONG}" / "index.parquet").exists()
    corpus.prepare()
    assert before.items() <= corpus.shards().items()
    corpus.prepare("straight")
    assert corpus.files() == corpus.files("straight")


def settings_for(corpus: Corpus, store: str) -> GroupSettings:
    return GroupSettings(
        dataset="d",
        root=str(corpus.folder / "media"),
        lengths=(SHORT, LONG),
        rules=RULES,
        fingerprint=corpus.tokenizer.fingerprint,
        verify=False,
        fetch=None,
        folder=str(corpus.folder / store),
    )


def tasks(corpus: Corpus, store: str) -> Iterator[Task]:
    settings = settings_for(corpus, store)
    for chunk in chunks(corpus.annotation):
        yield Task(settings, group_key(settings.key(), chunk), chunk)


def test_killed_workers_are_replaced_and_lose_nothing(corpus: Corpus):
    with LocalPool(corpus.tokenizer, 2) as pool:
        stop = threading.Event()
        killed = 0

        def kill() -> None:
            nonlocal killed
            while not stop.wait(0.05):
                done = len(list((corpus.folder / "pool").rglob("??????*")))
                if killed < done // 2 < 4:  # a worker of two after every second group, so that a slow machine gets on too
                    for pid in pool.pids[-1:]:
                        os.kill(pid, signal.SIGKILL)
                        killed += 1

        thread = threading.Thread(target=kill)
        thread.start()
        given = []
        for task in pool(tasks(corpus, "pool")):
            given.append(task.key)
        stop.set()
        thread.join()
    assert killed >= 1
    assert given == [task.key for task in tasks(corpus, "pool")]
    store, alone = GroupStore(corpus.folder / "pool"), GroupStore(corpus.folder / "alone")
    worker = GroupWorker(corpus.tokenizer)
    for task in tasks(corpus, "alone"):
        assert task.chunk is not None
        worker.work(task.settings, task.key, task.chunk)
        assert store.path(task.key).read_bytes() == alone.path(task.key).read_bytes()


DEADLY = """
import os, signal
import eagle_data.media_probes as probes

real = probes.image_size
def image_size(source, **options):
    if str(source).endswith("only-1.png"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(source, **options)
probes.image_size = image_size
"""


def test_a_sample_that_kills_its_workers_is_left_out_with_that_reason(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    (corpus.folder / "site").mkdir()
    (corpus.folder / "site" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(corpus.folder / "site"), *sys.path]))
    report = corpus.prepare(workers=2)
    rejects = [json.loads(line) for line in (corpus.folder / "out" / "rejects.jsonl").read_text().splitlines()]
    [left_out] = [entry for entry in rejects if "a worker" in entry["reason"]]
    assert left_out["line"] == 506
    assert "was killed by signal 11 (SIGSEGV) twice when it read this sample" in left_out["reason"]
    assert left_out["kind"] == "unreadable media"
    assert report.prepared + report.rejected == LINES


def test_an_error_in_a_worker_is_raised_by_the_driver(corpus: Corpus):
    settings = settings_for(corpus, "store")
    [first, *_] = chunks(corpus.annotation)
    wrong = GroupSettings(**{**vars(settings), "fingerprint": "another"})
    with LocalPool(corpus.tokenizer, 1) as pool, pytest.raises(ValueError, match="another tokenizer"):
        list(pool(iter([Task(wrong, "key", first)])))
    assert pool.pids == []
    with pytest.raises(ValueError, match="at least one process"):
        LocalPool(corpus.tokenizer, 0)


def test_a_tokenizer_is_the_same_in_another_process(tokenizer: PromptTokenizer):
    copy = PromptTokenizer.from_text(tokenizer.to_text())
    assert copy.fingerprint == tokenizer.fingerprint
    for text in ("Frame 7 sample at 3.03s: ", "a literal <img> and <|im_end|>", "<box>[1, 2]</box>"):
        assert copy.encode_text(text) == tokenizer.encode_text(text)


def test_an_override_is_one_datasets_own(corpus: Corpus):
    plain = DatasetEntry(annotation=corpus.annotation, root=corpus.folder / "media")
    own = plain.model_copy(update={"fps": 1.0, "min_frames": 1, "min_dynamic_tiles": 2, "tile_pages": False})
    assert plain.rules(RULES) is not own.rules(RULES)
    assert plain.rules(RULES) == RULES
    changed = own.rules(RULES)
    assert (changed.fps, changed.min_frames, changed.min_tiles, changed.tile_pages, changed.max_tiles) == (1.0, 1, 2, False, 6)
    options: dict[str, Any] = {"context_lengths": {"plain": [LONG], "own": [LONG]}, "rules": RULES, "tokenizer": corpus.tokenizer}
    reports = prepare({"plain": plain, "own": own}, corpus.folder / "both", **options)
    shown = {name: report.shown[str(LONG)] for name, report in reports.items()}
    assert 0 < shown["own"]["wished_frames"] < shown["plain"]["wished_frames"]
