"""Preparation: recipe to planned, tokenised samples in parquet, with a report and without pixels.

`prepare` reads annotations and media headers, plans every sample for each context length and writes the folders
`<out>/<dataset>/context-<n>` (`prepared`), the indexes of its videos (`media_index`), `<out>/rejects.jsonl` and
`<out>/report.json`. Work is done and remembered by groups of neighbouring records (`annotation_files`, `group_results`): a
group is done again only where its records, their media (size and time), the tokenizer, the rules or this package's code
changed, and a shard is written again only where a group of it did. Files appear whole or not at all, `done.json` last; a
preparation that was killed goes on, and every engine gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from eagle_data.ads import VisualRules
from eagle_data.annotation_files import Chunk, chunks
from eagle_data.annotations import Reject
from eagle_data.errors import EagleDataError
from eagle_data.fetch import Fetch
from eagle_data.group_engines import Engine, LocalPool, Task, here
from eagle_data.group_results import DamagedGroup, GroupStore, Refusal, StoredGroup, StoredIndex
from eagle_data.group_work import GroupSettings, GroupWorker, group_key
from eagle_data.media_index import MediaIndexWriter
from eagle_data.media_stamps import MediaStamps
from eagle_data.prepare_counts import DatasetReport, Tally
from eagle_data.prepared import context_folder
from eagle_data.prepared_writer import Group, PreparedWriter
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer

EXAMPLES = 6
"""Samples of a dataset that its page shows: those of the groups whose names come first, which is a draw that never changes."""


def prepare(
    datasets: Mapping[str, DatasetEntry],
    out: str | Path,
    *,
    context_lengths: Mapping[str, Sequence[int]],
    rules: VisualRules,
    tokenizer: PromptTokenizer,
    verify: bool = False,
    fetch: Fetch | None = None,
    progress: Callable[[str, int], None] | None = None,
    engine: str = "local",
    workers: int = 0,
) -> dict[str, DatasetReport]:
    """Prepare each dataset for its `context_lengths` (by dataset name) and return the counts.

    `verify` also decodes every picture once a group, so that damaged media are found now and not in training. `fetch` is leave
    to fetch media at http(s) addresses, and its bounds; without it their samples are rejected. What lies behind an address is not
    watched for changes, and one that could not be fetched is not tried again while nothing else changes. `progress` is
    called with the dataset's name and the number of lines done. Samples that no context length takes go to
    `rejects.jsonl`, one line each; the dataset's `too_long.jsonl` says which samples each context length refused.

    `engine` "local" works in this process, or in as many others as `workers` says; "ray" on Ray Data (extra `ray`), with as
    many actors, or with one a core. Raises FileNotFoundError for a missing annotation file and ValueError for a dataset without
    context lengths, for an unknown engine, and for overrides that cannot be.
    """
    out = Path(out)
    if engine not in ("local", "ray") or workers < 0:
        raise ValueError(f"engine={engine!r}, workers={workers}: the engine is local or ray, and workers are 0 or more")
    for name, entry in datasets.items():
        if not entry.annotation.exists():
            raise FileNotFoundError(f"dataset {name!r}: the annotation file {entry.annotation} does not exist")
        if not context_lengths.get(name):
            raise ValueError(f"dataset {name!r}: no context length is given; name at least one in context_lengths")
    reports: dict[str, DatasetReport] = {}
    with ExitStack() as stack:
        started: list[Engine] = []

        def run(tasks: Iterator[Task]) -> Iterator[Task]:
            if not started:
                started.append(_start(engine, workers, tokenizer, stack))
            return started[0](tasks)

        for name, entry in datasets.items():
            settings = GroupSettings(
                dataset=name,
                # Samples keep their media's paths, and are loaded from other working directories than they were prepared in.
                root=os.path.abspath(entry.root),
                lengths=tuple(sorted(set(context_lengths[name]))),
                rules=entry.rules(rules),
                fingerprint=tokenizer.fingerprint,
                verify=verify,
                fetch=fetch,
                folder=os.path.abspath(out / name / "row-groups"),
            )
            reports[name] = _Job(entry, out / name, settings, tokenizer).run(run, progress)
    with _replaced(out / "rejects.jsonl") as whole:
        for name in datasets:
            with (out / name / "rejects.jsonl").open(encoding="utf-8") as part:
                shutil.copyfileobj(part, whole)
    _write_text(out / "report.json", json.dumps({name: asdict(report) for name, report in reports.items()}, indent=1) + "\n")
    return reports


def _start(engine: str, workers: int, tokenizer: PromptTokenizer, stack: ExitStack) -> Engine:
    if engine == "ray":
        from eagle_data.group_ray import RayEngine

        return stack.enter_context(RayEngine(tokenizer, workers or None))
    return stack.enter_context(LocalPool(tokenizer, workers)) if workers else here(tokenizer)


@dataclass
class _Progress:
    """What is known of a dataset while its groups come in, in order."""

    digest: Any
    tally: Tally = field(default_factory=Tally)
    used: set[str] = field(default_factory=set)
    indexed: set[bytes] = field(default_factory=set)
    examples: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """One dataset to be prepared under its settings."""

    entry: DatasetEntry
    folder: Path
    settings: GroupSettings
    tokenizer: PromptTokenizer

    def run(self, engine: Engine, progress: Callable[[str, int], None] | None) -> DatasetReport:
        """Prepare the dataset, or return the report of an earlier run that is still true."""
        key = self.settings.key()
        store = GroupStore(self.settings.folder)
        done = self._done()
        if done is not None and done.get("key") == self._key_of_what_holds(key, store):
            return DatasetReport(**done["report"])
        self._clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        state = _Progress(self._digest(key))
        self._assemble(engine, key, store, state, progress)
        report = state.tally.report(self.settings.lengths)
        content = {
            "key": state.digest.hexdigest(),
            "report": asdict(report),
            "charts": state.tally.charts,
            "examples": [example for _, example in state.examples],
            "files": self._sizes(),
        }
        _write_text(self.folder / "done.json", json.dumps(content, indent=1))
        store.keep_only(state.used)
        if progress is not None:
            progress(self.settings.dataset, state.tally.read)
        return report

    def _assemble(
        self, engine: Engine, key: str, store: GroupStore, state: _Progress, progress: Callable[[str, int], None] | None
    ) -> None:
        """Have the groups prepared, and write the dataset's files from their results, in order."""
        places: dict[str, list[Chunk]] = {}
        with (
            PreparedWriter(self.folder, self.settings.lengths) as writer,
            MediaIndexWriter(self.folder) as indexes,
            _replaced(self.folder / "rejects.jsonl") as rejects,
            _replaced(self.folder / "too_long.jsonl") as too_long,
        ):
            for task in engine(self._tasks(key, store, places)):
                chunk = places[task.key].pop(0)
                if not places[task.key]:
                    del places[task.key]
                result = store.load(task.key)
                try:
                    if result is None:  # it was taken away
                        raise DamagedGroup
                    groups, videos = self._parts(task.key, chunk, result, store, state)
                except DamagedGroup:
                    result = self._again(task.key, chunk, store)
                    groups, videos = self._parts(task.key, chunk, result, store, state)
                _hold(state.digest, task.key, result)
                state.used.add(task.key)
                state.tally.add(result.tally)
                for n, group in groups.items():
                    writer.add_group(n, group)
                for video in videos:
                    state.indexed.add(_short(video.path))
                    indexes.add(video.path, video)  # pyright: ignore[reportArgumentType]  # it has what is asked of an index
                self._refusals(chunk, result.rejects, rejects)
                self._refusals(chunk, result.too_long, too_long)
                if result.example is not None:
                    where = f"{chunk.file}:{chunk.first + result.example['number']}"
                    state.examples.append((task.key, {**result.example, "where": where}))
                    state.examples = sorted(state.examples, key=lambda pair: (not pair[1]["units"], pair[0]))[:EXAMPLES]
                if progress is not None:
                    progress(self.settings.dataset, state.tally.read)

    def _tasks(self, key: str, store: GroupStore, places: dict[str, list[Chunk]]) -> Iterator[Task]:
        """Every group as a task, with work where there is no result that holds; `places` learns where the group stands."""
        stamps = MediaStamps(self.settings.fetch)
        for chunk in chunks(self.entry.annotation):
            name = group_key(key, chunk)
            known = store.load(name)
            # Twice the same lines are one group, prepared once.
            holds = name in places or (known is not None and known.holds(stamps))
            places.setdefault(name, []).append(Chunk(chunk.file, chunk.first, chunk.kind, b""))
            yield Task(self.settings, name, None if holds else chunk)

    def _again(self, name: str, place: Chunk, store: GroupStore) -> StoredGroup:
        """The result of a group that was damaged, made anew in this process."""
        for chunk in chunks(self.entry.annotation):
            if (chunk.file, chunk.first) == (place.file, place.first):
                GroupWorker(self.tokenizer).work(self.settings, name, chunk)
                result = store.load(name)
                assert result is not None
                return result
        raise FileNotFoundError(f"{place.file}: record {place.first} is gone; it changed while it was prepared: run again")

    def _parts(
        self, name: str, chunk: Chunk, result: StoredGroup, store: GroupStore, state: _Progress
    ) -> tuple[dict[int, Group], list[StoredIndex]]:
        """What a result adds to the dataset: rows for each context length, and indexes of videos that were not met before."""

        def samples_of(n: int) -> Callable[[], Iterable[Any]]:
            def samples() -> Iterable[Any]:
                try:
                    return result.samples(n)
                except DamagedGroup:
                    again = self._again(name, chunk, store)
                if again.samples_digest(n) != result.samples_digest(n):
                    raise EagleDataError(f"{chunk.file}: media changed while they were prepared; run again")
                return again.samples(n)

            return samples

        groups = {
            n: Group(
                chunk.file,
                chunk.first,
                result.facts(n),
                samples_of(n),
                result.samples_digest(n),
                result.samples_size(n),
            )
            for n in self.settings.lengths
        }
        return groups, result.indexes(lambda path: _short(path) not in state.indexed)

    def _refusals(self, chunk: Chunk, refusals: Sequence[Refusal], file: TextIO) -> None:
        for refusal in refusals:
            where = f"{chunk.file}:{chunk.first + refusal.number}"
            entry = Reject(self.settings.dataset, where, refusal.reason, refusal.kind).to_json()
            if refusal.context_length is not None:
                entry["context_length"] = refusal.context_length
            file.write(json.dumps(entry) + "\n")

    def _key_of_what_holds(self, key: str, store: GroupStore) -> str | None:
        """The key that a run would end with if every group has a result that holds; None where one has not."""
        digest, stamps = self._digest(key), MediaStamps(self.settings.fetch)
        for chunk in chunks(self.entry.annotation):
            name = group_key(key, chunk)
            known = store.load(name)
            if known is None or not known.holds(stamps):
                return None
            _hold(digest, name, known)
        return digest.hexdigest()

    def _digest(self, key: str) -> Any:
        """The beginning of the dataset's key: rows also say in which file they stand."""
        return hashlib.sha256(f"{key} {self.entry.annotation}".encode("utf-8", "backslashreplace"))

    def _files(self) -> list[Path]:
        """All that a preparation leaves in the folder, but for `done.json` and the results of groups."""
        texts = [self.folder / name for name in ("rejects.jsonl", "too_long.jsonl", "media-index.parquet")]
        folders = [context_folder(self.folder, n) for n in self.settings.lengths]
        return texts + [path for folder in folders for path in sorted(folder.glob("*.parquet"))]

    def _sizes(self) -> dict[str, int]:
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in self._files()}

    def _done(self) -> dict[str, Any] | None:
        """What `done.json` says, where every file that it names is there in its size."""
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
            return done if done.get("files") == self._sizes() else None
        except (OSError, json.JSONDecodeError):
            return None

    def _clear(self) -> None:
        """Remove what says that an earlier preparation is complete, `done.json` first, and what no context length needs.

        Results of groups and shards stay; their names say what they are.
        """
        wanted = {context_folder(self.folder, n).name for n in self.settings.lengths}
        (self.folder / "done.json").unlink(missing_ok=True)
        for pattern in ("context-*/index.parquet", "context-*/groups.parquet", "media-index.parquet", "*.part"):
            for path in self.folder.glob(pattern):
                path.unlink()
        for path in self.folder.glob("context-*"):
            if path.is_file():
                path.unlink()
            elif path.name not in wanted:
                shutil.rmtree(path)


def _short(path: str) -> bytes:
    """Eight bytes that stand for the name of a video, so that millions of them can be remembered."""
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _hold(digest: Any, name: str, result: StoredGroup) -> None:
    """Take a group, and its media as they were, into a dataset's key."""
    digest.update(f"{name} {result.media}".encode("utf-8", "backslashreplace"))


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name when the block ends well."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_text(path: Path, text: str) -> None:
    with _replaced(path) as file:
        file.write(text)


__all__ = ["DatasetReport", "prepare"]
