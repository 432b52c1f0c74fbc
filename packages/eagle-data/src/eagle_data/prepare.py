"""Preparation: recipe to planned, tokenised samples in parquet, with a report and without pixels.

`prepare` reads annotations and media headers, plans every sample for each context length and writes
`<out>/<dataset>/context-<n>.parquet`, the indexes of its videos (`media_index`), `<out>/rejects.jsonl` and
`<out>/report.json`. A dataset whose annotations, media (size and time), tokenizer and rules are unchanged is not redone; files
appear whole or not at all, `done.json` last, so an interrupted preparation goes on with the dataset it was at.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from eagle_data import __version__
from eagle_data.ads import Planner, VisualPlan, VisualRules
from eagle_data.ads_bound import optimum
from eagle_data.annotations import Reject, read_annotations
from eagle_data.encode import Encoded, encode
from eagle_data.errors import EagleDataError, MediaError, SampleError
from eagle_data.fetch import Fetch, is_address
from eagle_data.media_index import MediaIndexWriter, media_index_file
from eagle_data.media_probes import MediaProbes
from eagle_data.prepared import PreparedWriter, prepared_file
from eagle_data.recipe import DatasetEntry
from eagle_data.references import parse_reference
from eagle_data.samples import DocumentRef, Sample, VideoRef
from eagle_data.tokens import PromptTokenizer

FORMAT = 3
"""Version of the prepared files; a change of it or of the package makes every dataset be prepared anew."""


@dataclass(frozen=True)
class DatasetReport:
    """Counts of one dataset.

    `read` lines, `prepared` samples that at least one context length took, `rejected` those that none took;
    `degraded` and `too_long` count samples per context length; `reasons` counts the rejected by kind ("not JSON",
    "missing media", …), so its values add up to `rejected`. `shown` totals, per context length, what the prepared samples show
    and what they gave up: the samples with `fewer_frames` and with `fewer_tiles`; `frames` (with pages) and `image_tiles` beside
    those wished; `tokens` in all, `visual_tokens` among them, and `optimum_visual_tokens`, the most that Eq. 2 of the paper could
    show in the same contexts.
    """

    read: int
    prepared: int
    rejected: int
    degraded: dict[str, int]
    too_long: dict[str, int]
    reasons: dict[str, int]
    shown: dict[str, dict[str, int]]


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
) -> dict[str, DatasetReport]:
    """Prepare each dataset for its `context_lengths` (by dataset name) and return the counts.

    `verify` also decodes every picture once, so that damaged media are found now and not in training. `fetch` is leave to fetch
    media at http(s) addresses, and its bounds; without it their samples are rejected. What lies behind an address is not watched
    for changes, and one that could not be fetched is not tried again while nothing else changes. `progress` is
    called with the dataset's name and the number of lines done. Samples that no context length takes go to
    `rejects.jsonl`, one line each; the dataset's `too_long.jsonl` says which samples each context length refused.
    Raises FileNotFoundError for a missing annotation file and ValueError for a dataset without context lengths.
    """
    out = Path(out)
    for name, entry in datasets.items():
        if not entry.annotation.is_file():
            raise FileNotFoundError(f"dataset {name!r}: the annotation file {entry.annotation} does not exist")
        if not context_lengths.get(name):
            raise ValueError(f"dataset {name!r}: no context length is given; name at least one in context_lengths")
    reports: dict[str, DatasetReport] = {}
    for name, entry in datasets.items():
        own_rules = replace(rules, max_tiles=entry.max_dynamic_tiles) if entry.max_dynamic_tiles else rules
        job = _Job(name, entry, out / name, tuple(sorted(set(context_lengths[name]))), own_rules, tokenizer, verify, fetch)
        reports[name] = job.run(progress)
    rejects = "".join((out / name / "rejects.jsonl").read_text(encoding="utf-8") for name in datasets)
    _write_text(out / "rejects.jsonl", rejects)
    _write_text(out / "report.json", json.dumps({name: asdict(report) for name, report in reports.items()}, indent=1) + "\n")
    return reports


@dataclass
class _Tally:
    """The counts of one dataset while it is being prepared."""

    read: int = 0
    prepared: int = 0
    rejected: int = 0
    degraded: Counter[str] = field(default_factory=Counter)
    too_long: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    shown: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, context_length: int, planned: _Row, tokens_per_tile: int) -> None:
        """Count one prepared sample."""
        plan, name = planned.plan, str(context_length)
        self.degraded[name] += bool(plan.degraded)
        self.shown.setdefault(name, Counter()).update(
            fewer_frames="frames" in plan.degraded,
            fewer_tiles="tiles" in plan.degraded,
            frames=plan.frames,
            wished_frames=plan.wished_frames,
            image_tiles=plan.image_tiles,
            wished_image_tiles=plan.wished_tiles,
            tokens=plan.length,
            visual_tokens=plan.tiles * tokens_per_tile,
            optimum_visual_tokens=planned.optimum * tokens_per_tile,
        )

    def report(self, lengths: Sequence[int]) -> DatasetReport:
        return DatasetReport(
            read=self.read,
            prepared=self.prepared,
            rejected=self.rejected,
            degraded={str(n): self.degraded[str(n)] for n in lengths},
            too_long={str(n): self.too_long[str(n)] for n in lengths},
            reasons=dict(self.reasons.most_common()),
            shown={str(n): dict(self.shown.get(str(n), {})) for n in lengths},
        )


@dataclass(frozen=True)
class _Row:
    """One sample planned for one context length; `optimum` is the most tiles that Eq. 2 could show there."""

    encoded: Encoded
    plan: VisualPlan
    optimum: int


@dataclass(frozen=True)
class _Planned:
    """One sample planned for every context length that takes it; `refused` holds the errors of those that do not."""

    rows: dict[int, _Row]
    refused: dict[int, SampleError]


@dataclass(frozen=True)
class _Job:
    """One dataset to be prepared for some context lengths under one set of rules."""

    name: str
    entry: DatasetEntry
    folder: Path
    lengths: tuple[int, ...]
    rules: VisualRules
    tokenizer: PromptTokenizer
    verify: bool
    fetch: Fetch | None

    def run(self, progress: Callable[[str, int], None] | None) -> DatasetReport:
        """Prepare the dataset, or return the report of an earlier run that is still true."""
        key = self._key()
        done = self._done()
        if done is not None and done.get("key") == key:
            return DatasetReport(**done["report"])
        self._clear()
        tally = _Tally()
        self.folder.mkdir(parents=True, exist_ok=True)
        rejects, too_long = self.folder / "rejects.jsonl", self.folder / "too_long.jsonl"
        with (
            PreparedWriter(self.folder, self.lengths) as writer,
            MediaIndexWriter(self.folder) as indexes,
            _part(rejects).open("w", encoding="utf-8") as rejected,
            _part(too_long).open("w", encoding="utf-8") as refused,
        ):
            probes = MediaProbes(fetch=self.fetch, indexed=indexes.add)
            for line in self._lines():
                tally.read += 1
                self._one(line, probes, tally, writer, rejected, refused)
                if progress is not None and tally.read % 64 == 0:
                    progress(self.name, tally.read)
        os.replace(_part(rejects), rejects)
        os.replace(_part(too_long), too_long)
        report = tally.report(self.lengths)
        _write_text(self.folder / "done.json", json.dumps({"key": key, "report": asdict(report)}, indent=1))
        if progress is not None:
            progress(self.name, tally.read)
        return report

    def _lines(self) -> Iterator[Sample | Reject]:
        return read_annotations(self.entry.annotation, dataset=self.name, root=self.entry.root)

    def _one(
        self, line: Sample | Reject, probes: MediaProbes, tally: _Tally, writer: PreparedWriter, rejected: TextIO, refused: TextIO
    ) -> None:
        """Store one sample's rows, or list it as rejected."""
        planned = _Planned({}, {})
        reject = line if isinstance(line, Reject) else None
        if isinstance(line, Sample):
            try:
                planned = self._plan(line, probes)
            except EagleDataError as error:
                reject = _reject(line, error)
            for context_length, error in planned.refused.items():
                tally.too_long[str(context_length)] += 1
                refused.write(json.dumps({**asdict(_reject(line, error)), "context_length": context_length}) + "\n")
                reject = None if planned.rows else _reject(line, error)
        if reject is not None:
            tally.rejected += 1
            tally.reasons[reject.kind] += 1
            rejected.write(json.dumps(asdict(reject)) + "\n")
            return
        tally.prepared += 1
        for context_length, row in planned.rows.items():
            writer.add(context_length, line.where, row.encoded, row.plan.record)
            tally.add(context_length, row, self.rules.tokens_per_tile)

    def _plan(self, sample: Sample, probes: MediaProbes) -> _Planned:
        """Plan and encode a sample for every context length; raises EagleDataError for its media or its text."""
        sample = replace(sample, documents=tuple(_with_pages(document, probes) for document in sample.documents))
        planner = Planner(
            sample,
            image_sizes=[probes.image(ref) for ref in sample.images],
            video_infos=[probes.video(ref) for ref in sample.videos],
            document_sizes=[[probes.image(ref.page(i)) for i in range(len(ref.pages))] for ref in sample.documents],
            rules=self.rules,
            tokenizer=self.tokenizer,
        )
        planned = _Planned({}, {})
        for n in self.lengths:
            try:
                chosen = planner.plan(n)
            except SampleError as error:
                planned.refused[n] = error
                continue
            encoded = encode(sample, chosen, rules=self.rules, tokenizer=self.tokenizer)
            planned.rows[n] = _Row(encoded, chosen, optimum(planner, n) if chosen.degraded else chosen.tiles)
        if self.verify:
            units = [unit for row in planned.rows.values() for unit in row.encoded.units]
            probes.verify(units, tile_size=self.rules.tile_size)
        return planned

    def _key(self) -> str:
        """Changes with anything that the prepared rows depend on; media are known by size and time, not read."""
        digest = hashlib.sha256()
        digest.update(repr((FORMAT, __version__, self.lengths, self.rules, self.tokenizer.fingerprint, self.verify)).encode())
        seen: set[str] = set()
        for line in self._lines():
            digest.update(repr(line).encode("utf-8", "backslashreplace"))
            if isinstance(line, Sample):
                for ref in (*line.images, *line.videos, *line.documents):
                    if ref.path not in seen:
                        seen.add(ref.path)
                        digest.update(_stamp(ref.path, self.fetch).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _done(self) -> dict[str, Any] | None:
        files = (
            *(prepared_file(self.folder, n) for n in self.lengths),
            self.folder / "rejects.jsonl",
            media_index_file(self.folder),
        )
        try:
            done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        return done if all(file.is_file() for file in files) else None

    def _clear(self) -> None:
        """Remove what an earlier preparation left, its `done.json` first: nothing may pass for the result of this one."""
        for pattern in ("done.json", "context-*.parquet", "media-index.parquet", "*.part"):
            for path in self.folder.glob(pattern):
                path.unlink()


def _with_pages(document: DocumentRef, probes: MediaProbes) -> DocumentRef:
    """The document with the numbers of its pages; the pages of a PDF are the frames of it as a video."""
    pages = document.pages or range(1, probes.video(VideoRef(document.path)).frames + 1)
    return replace(document, pages=tuple(pages))


def _reject(sample: Sample, error: EagleDataError) -> Reject:
    if isinstance(error, SampleError):
        return Reject(sample.dataset, sample.where, error.reason, error.kind)
    kind = error.kind if isinstance(error, MediaError) else "bad record"
    return Reject(sample.dataset, sample.where, str(error), kind)


def _stamp(path: str, fetch: Fetch | None) -> str:
    """Size and time of a media file, of the archive or LMDB store that it lies in, or of every picture of a folder; of an
    address, under which leave it was tried."""
    if is_address(path):
        return f"{path} {fetch if fetch is not None else os.environ.get('EAGLE_DATA_FETCH') == '1'}"
    path = parse_reference(path).file
    try:
        store = os.path.join(path, "data.mdb")
        if os.path.isdir(path) and not os.path.exists(store):
            with os.scandir(path) as entries:
                stamps = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
            return f"{path} {stamps}"
        status = os.stat(store if os.path.isdir(path) else path)
    except OSError:
        return f"{path} missing"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _write_text(path: Path, text: str) -> None:
    _part(path).write_text(text, encoding="utf-8")
    os.replace(_part(path), path)


__all__ = ["DatasetReport", "prepare"]
