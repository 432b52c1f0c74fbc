"""The data of a run: annotations in every form, media on the web only with leave, and counting that tells the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eagle_data.prepare import prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.tokens import PromptTokenizer
from eagle_train import stage_data
from eagle_train.errors import RecipeError
from eagle_train.preflight import check, refused_addresses
from eagle_train.recipe import Recipe
from eagle_train.recipe_files import load_recipe
from eagle_train.run_folder import RunFolder
from eagle_train.stage_data import StageData, find_datasets, visual_rules

LENGTH = 256


class Phases:
    """Phases that show nothing and keep what they were told."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.updates: list[int] = []

    @contextmanager
    def __call__(self, title: str, total: int | None) -> Iterator[Any]:
        self.totals.append(total)
        yield self

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self.updates.append(done)


class Quiet(SimpleHTTPRequestHandler):
    """The standard library's file server, which notes what it was asked."""

    def __init__(self, asked: list[str], *arguments: Any, **options: Any) -> None:
        self.asked = asked
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@pytest.fixture
def asked() -> list[str]:
    """The paths that the web server was asked for."""
    return []


@pytest.fixture
def web(media: Path, asked: list[str]) -> Iterator[str]:
    """The address of a server of `media`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, asked, directory=str(media))) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def make(tmp_path: Path, media: Path, toy_folder: Path, load_toy: Callable[[], Any]) -> Callable[..., tuple[Recipe, StageData]]:
    """A recipe over one dataset, and its data after the checks that a run makes; options are keys of `data`."""

    def start(annotation: Path, **options: Any) -> tuple[Recipe, StageData]:
        data = {"datasets": {"d": {"annotation": str(annotation), "root": str(media)}}, "min_frames": 2, **options}
        stages = [{"name": "only", "context_length": LENGTH, "epochs": 1}]
        (tmp_path / "r.json").write_text(
            json.dumps({"name": "r", "data": data, "model": {"path": str(toy_folder)}, "stages": stages})
        )
        recipe = load_recipe(str(tmp_path / "r.json"), ["engine.prefetch=0"])
        check(recipe)
        entries = find_datasets(recipe, RunFolder(tmp_path / "run"), Phases())
        return recipe, StageData(recipe, entries, visual_rules(load_toy().config, recipe.data), tmp_path / "run" / "prepared")

    return start


@pytest.fixture
def tokenizer(toy_folder: Path) -> PromptTokenizer:
    return PromptTokenizer.from_folder(toy_folder)


def rows(talk: Callable[..., dict[str, Any]], count: int = 7) -> list[dict[str, Any]]:
    return [talk("<image>\nColour?", f"Red {n}.", image="red.png") for n in range(count)]


def as_parquet_folder(folder: Path, values: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(values[:4]), folder / "data" / "train-0.parquet")
    pq.write_table(pa.Table.from_pylist(values[4:]), folder / "data" / "train-1.parquet")
    return folder


def as_saved_to_disk(folder: Path, values: list[dict[str, Any]]) -> Path:
    """As `save_to_disk` of Hugging Face's datasets writes it: Arrow streams, and a state that lists them."""
    folder.mkdir()
    table = pa.Table.from_pylist(values)
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def as_parquet(folder: Path, values: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(values), folder.with_suffix(".parquet"))
    return folder.with_suffix(".parquet")


def as_array(folder: Path, values: list[dict[str, Any]]) -> Path:
    folder.with_suffix(".json").write_text(json.dumps(values))
    return folder.with_suffix(".json")


@pytest.mark.parametrize(
    ("write", "total"), [(as_parquet, 7), (as_parquet_folder, 7), (as_saved_to_disk, 7), (as_array, None)], ids=lambda value: ""
)
def test_datasets_in_folders_parquet_and_arrays_are_prepared_and_counted(
    write: Callable[..., Path], total: int | None, tmp_path: Path, make: Any, talk: Any, tokenizer: PromptTokenizer
):
    _, data = make(write(tmp_path / "set", rows(talk)))
    phases = Phases()
    report = data.prepare(tokenizer, phases)["d"]
    assert (report.read, report.prepared) == (7, 7)
    assert phases.totals == [total]
    assert phases.updates[-1] == 7
    loader = data.loader(0)
    packs = list(islice(loader, len(loader.epoch_packs(0))))
    assert sum(len(pack.samples) for pack in packs) == 7


def test_what_is_no_dataset_is_refused_with_its_name(tmp_path: Path, make: Any, tokenizer: PromptTokenizer):
    with pytest.raises(RecipeError, match=r"data\.datasets\.d\.annotation: there is no file .*gone"):
        make(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"dataset 'd': .*empty holds no dataset"):
        make(tmp_path / "empty")[1].prepare(tokenizer, Phases())
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecipeError, match=r"dataset 'd': .*torn\.parquet cannot be read"):
        make(tmp_path / "torn.parquet")[1].prepare(tokenizer, Phases())


def test_addresses_are_fetched_while_preparing_and_loading_only_with_leave_in_the_recipe(
    web: str, asked: list[str], make: Any, write_lines: Any, talk: Any, tokenizer: PromptTokenizer
):
    lines = write_lines([talk("<image>\nColour?", image=f"{web}/red.png"), talk("<image>\nColour?", image="red.png")])
    for refused in ({}, {"fetch": {"hosts": ["example.org"]}}):
        assert make(lines, **refused)[1].prepare(tokenizer, Phases())["d"].prepared == 1
    assert asked == []

    _, data = make(lines, fetch={"hosts": ["127.0.0.1"]})
    assert data.prepare(tokenizer, Phases())["d"].prepared == 2
    assert asked
    asked.clear()
    [pack] = islice(data.loader(0), 1)
    assert len(pack.samples) == 2
    assert asked == ["/red.png"]


def test_the_bounds_of_fetching_hold(web: str, make: Any, write_lines: Any, talk: Any, tokenizer: PromptTokenizer, media: Path):
    (media / "red.png").write_bytes((media / "red.png").read_bytes() + bytes(1 << 20))
    lines = write_lines([talk("<image>\nColour?", image=f"{web}/red.png")])
    assert make(lines, fetch={"max_mib": 1})[1].prepare(tokenizer, Phases())["d"].prepared == 0
    assert make(lines, fetch={"max_mib": 2})[1].prepare(tokenizer, Phases())["d"].prepared == 1


def test_addresses_without_leave_are_told_before_they_cost_samples(
    make: Any, write_lines: Any, talk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def told(annotation: Path, **options: Any) -> list[str]:
        recipe, _ = make(annotation, **options)
        return list(refused_addresses(recipe.data.datasets, recipe.data))

    lines = write_lines(
        [talk("Hello."), "{", talk("<video>", video="https://example.org/a.mp4"), talk("<image>", image="http://b")]
    )
    [line] = told(lines)
    assert f"dataset 'd' names media at addresses ({lines}:3: https://example.org/a.mp4)" in line
    assert "data.fetch={hosts: [example.org]}" in line
    [line] = told(lines, fetch={"hosts": ["example.org"]})
    assert "http://b" in line
    assert "add the host b to data.fetch.hosts" in line
    assert told(lines, fetch={}) == []
    [line] = told(write_lines([talk("<image>", image="http://[")], "odd.jsonl"))
    assert line.endswith("correct the address")
    assert told(write_lines([talk("<image>", image="red.png")], "local.jsonl")) == []
    (tmp_path / "torn.parquet").write_bytes(b"torn")
    assert told(tmp_path / "torn.parquet") == []
    monkeypatch.setenv("EAGLE_DATA_FETCH", "1")
    assert told(lines) == []


def test_a_run_says_which_addresses_it_will_not_fetch(
    tmp_path: Path, media: Path, toy_folder: Path, run: Any, write_lines: Any, talk: Any
):
    write_lines([talk("<image>\nColour?", image="red.png"), talk("<image>\nColour?", image="https://example.org/[a].png")])
    (tmp_path / "my.yaml").write_text(
        f"name: mine\nrun_dir: {tmp_path / 'run'}\ndata: {{datasets: {{mine: {{annotation: train.jsonl, root: {media}}}}}}}\n"
        f"model: {{path: {toy_folder}}}\nstages: [{{name: only, context_length: 256, epochs: 1}}]\n"
        "engine: {device: cpu, threads: 1}\n"
    )
    output = run(load_recipe(str(tmp_path / "my.yaml")))
    assert "train.jsonl:2: https://example.org/[a].png" in output.replace("\n", "")
    assert "Rejected samples: 1." in output


def test_processes_are_used_where_there_is_work_for_them_and_change_nothing(
    tmp_path: Path, make: Any, write_lines: Any, talk: Any, tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch
):
    used: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        used.append(options["workers"])
        return prepare(*arguments, **options)

    monkeypatch.setattr(stage_data, "prepare", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    monkeypatch.setattr(stage_data, "RECORDS_A_WORKER", 100)
    lines = write_lines(rows(talk, 250))
    contents = []
    for options in ({}, {"prepare_workers": 0}):
        _, data = make(lines, **options)
        data.prepare(tokenizer, Phases())
        rows_of = PreparedDataset(tmp_path / "run" / "prepared" / "d", LENGTH)
        contents.append((data.digest(), [rows_of[row][0].input_ids.tolist() for row in range(len(rows_of))]))
        (tmp_path / "run" / "prepared").rename(tmp_path / f"prepared-{len(contents)}")
    assert used == [2, 0]
    assert len(contents[0][1]) == 250
    assert contents[0] == contents[1]
    assert [stage_data._workers(count) for count in (0, 199, 200, 10**6, None)] == [0, 0, 2, 3, 3]
