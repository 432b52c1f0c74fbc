"""The work of preparation on one group of records: read, plan, tokenise, and keep what came of it.

Promises the same result for the same records, media, rules and tokenizer, whoever works and whatever was done before: nothing
is remembered from one group to the next. Engines (`group_engines`, `group_ray`) decide where this runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle_data import __version__
from eagle_data.ads import Planner, VisualPlan, VisualRules
from eagle_data.ads_bound import optimum
from eagle_data.annotation_files import Chunk, records
from eagle_data.annotations import Reject, read_record
from eagle_data.encode import Encoded, encode
from eagle_data.errors import EagleDataError, MediaError, SampleError
from eagle_data.fetch import Fetch
from eagle_data.group_results import GroupResult, GroupRows, GroupStore, Refusal, StoredIndex
from eagle_data.media_probes import MediaProbes
from eagle_data.media_stamps import MediaStamps
from eagle_data.prepared_rows import ROWS, Row, batches_of, facts_schema, samples_schema
from eagle_data.samples import DocumentRef, Sample, VideoRef
from eagle_data.tokens import PromptTokenizer
from eagle_data.units import units_to_json

if TYPE_CHECKING:
    from eagle_data.media.frame_index import FrameIndex

FORMAT = 5
"""Version of the prepared files."""
TOKENS = 1 << 20
"""A row group gets no row more once it has so many tokens."""
LATER = (
    "cli*",
    "collate*",
    "contact_sheet*",
    "curate",
    "dealing*",
    "epoch_order*",
    "inspect_media*",
    "loader*",
    "pack_*",
    "packing*",
)
"""Files of this package that have no part in a group's result: a change of theirs redoes nothing."""
_SHOWN_CHARACTERS, _SHOWN_UNITS = 300, 4


@dataclass(frozen=True)
class GroupSettings:
    """What the result of a group depends on besides its records, the tokenizer itself and the media.

    `folder` is where results are stored and changes nothing of them; `fingerprint` is the tokenizer's.
    """

    dataset: str
    root: str
    lengths: tuple[int, ...]
    rules: VisualRules
    fingerprint: str
    verify: bool
    fetch: Fetch | None
    folder: str

    def key(self) -> str:
        """Changes with anything that every group of the dataset depends on, this package's code included."""
        values = (FORMAT, __version__, code_version(), self.root, self.lengths, self.rules, self.fingerprint, self.verify)
        return hashlib.blake2b(repr(values).encode("utf-8", "backslashreplace"), digest_size=20).hexdigest()


def group_key(settings_key: str, chunk: Chunk) -> str:
    """The name of a group's result."""
    return hashlib.blake2b(settings_key.encode() + chunk.content, digest_size=20).hexdigest()


@cache
def code_version() -> str:
    """A digest of this package's source, but for what comes after preparation (`LATER`)."""
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder)
        if not any(fnmatch(inner.parts[0], pattern) for pattern in LATER):
            digest.update(inner.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class GroupWorker:
    """Makes and stores the results of groups, one after another."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self.tokenizer = tokenizer

    def work(
        self,
        settings: GroupSettings,
        key: str,
        chunk: Chunk,
        *,
        left_out: Mapping[int, str] | None = None,
        begun: Callable[[int], None] | None = None,
    ) -> None:
        """Make a group's result and store it under `key`.

        `left_out` are records, counted from the group's first, that are refused unread, with the reason; `begun` is told each
        record before it is read. Raises ValueError for a tokenizer that is not the settings' own.
        """
        if self.tokenizer.fingerprint != settings.fingerprint:
            raise ValueError("this worker has another tokenizer than the settings name; give both the same")
        result = make_group(settings, self.tokenizer, chunk, left_out=left_out, begun=begun)
        GroupStore(settings.folder).save(key, result)


def make_group(
    settings: GroupSettings,
    tokenizer: PromptTokenizer,
    chunk: Chunk,
    *,
    left_out: Mapping[int, str] | None = None,
    begun: Callable[[int], None] | None = None,
) -> GroupResult:
    """The result of one group; arguments as of `GroupWorker.work`."""
    return _Group(settings, tokenizer, chunk).make(left_out or {}, begun)


@dataclass(frozen=True)
class _Planned:
    """One sample for every context length that takes it; `refused` holds the errors of those that do not."""

    encoded: dict[int, Encoded]
    plans: dict[int, VisualPlan]
    most: dict[int, int]
    refused: dict[int, SampleError]


class _Group:
    def __init__(self, settings: GroupSettings, tokenizer: PromptTokenizer, chunk: Chunk) -> None:
        self.settings, self.tokenizer, self.chunk = settings, tokenizer, chunk
        self.result = GroupResult()
        self.probes = MediaProbes(fetch=settings.fetch, indexed=self._indexed)
        self._stamps = MediaStamps(settings.fetch)
        self._media: dict[str, str] = {}
        self._rows = {n: _Rows() for n in settings.lengths}

    def make(self, left_out: Mapping[int, str], begun: Callable[[int], None] | None) -> GroupResult:
        result, chunk = self.result, self.chunk
        for number, record in records(chunk):
            at = number - chunk.first
            if begun is not None:
                begun(at)
            result.tally.read += 1
            where = f"{chunk.file}:{number}"
            if at in left_out:
                self._reject(at, left_out[at], "unreadable media")
                continue
            line = read_record(record, dataset=self.settings.dataset, where=where, root=self.settings.root)
            if isinstance(line, Reject):
                self._reject(at, line.reason, line.kind)
                continue
            try:
                planned = self._plan(line)
            except SampleError as error:
                self._reject(at, error.reason, error.kind)
            except EagleDataError as error:
                self._reject(at, str(error), error.kind if isinstance(error, MediaError) else "bad record")
            else:
                self._keep(at, line, planned)
        result.media = list(self._media.items())
        result.rows = {n: rows.finish() for n, rows in self._rows.items()}
        return result

    def _plan(self, sample: Sample) -> _Planned:
        """Plan and encode a sample for every context length; raises EagleDataError for its media or its text."""
        for ref in (*sample.images, *sample.videos, *sample.documents):
            if ref.path not in self._media:  # before it is opened: a change from then on is one
                self._media[ref.path] = self._stamps.of(ref.path)
        rules, probes = self.settings.rules, self.probes
        sample = replace(sample, documents=tuple(_with_pages(document, probes) for document in sample.documents))
        planner = Planner(
            sample,
            image_sizes=[probes.image(ref) for ref in sample.images],
            video_infos=[probes.video(ref) for ref in sample.videos],
            document_sizes=[[probes.image(ref.page(i)) for i in range(len(ref.pages))] for ref in sample.documents],
            rules=rules,
            tokenizer=self.tokenizer,
        )
        planned = _Planned({}, {}, {}, {})
        for n in self.settings.lengths:
            try:
                plan = planner.plan(n)
            except SampleError as error:
                planned.refused[n] = error
                continue
            planned.encoded[n] = encode(sample, plan, rules=rules, tokenizer=self.tokenizer)
            planned.plans[n] = plan
            planned.most[n] = optimum(planner, n) if plan.degraded else plan.tiles
        if self.settings.verify:
            units = [unit for encoded in planned.encoded.values() for unit in encoded.units]
            probes.verify(units, tile_size=rules.tile_size)
        return planned

    def _keep(self, at: int, sample: Sample, planned: _Planned) -> None:
        """Store one sample's rows, or list it as rejected where no context length takes it."""
        tally = self.result.tally
        for n, error in planned.refused.items():
            tally.too_long[str(n)] += 1
            self.result.too_long.append(Refusal(at, error.reason, error.kind, n))
        if not planned.plans:
            error = list(planned.refused.values())[-1]
            self._reject(at, error.reason, error.kind)
            return
        tally.prepared += 1
        for n, plan in planned.plans.items():
            self._rows[n].add(Row(at, planned.encoded[n], plan.record))
            tokens = self.settings.rules.tokens_per_tile
            tally.add_plan(n, plan, optimum_tiles=planned.most[n], tokens_per_tile=tokens)
        if self.result.example is None or (planned.plans[max(planned.plans)].tiles and not self.result.example["units"]):
            self.result.example = _example(at, sample, max(planned.plans), planned)

    def _reject(self, at: int, reason: str, kind: str) -> None:
        self.result.tally.rejected += 1
        self.result.tally.reasons[kind] += 1
        self.result.rejects.append(Refusal(at, reason, kind))

    def _indexed(self, path: str, index: FrameIndex) -> None:
        known = (index.source_size, index.source_mtime_ns, len(index))
        self.result.indexes.append(StoredIndex(path, *known, index.to_bytes()))


class _Rows:
    """The rows of one context length, written to Arrow streams batch by batch, so that tokens lie compressed in memory."""

    def __init__(self) -> None:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._facts, self._samples = pa.BufferOutputStream(), pa.BufferOutputStream()
        self._writers = (
            pa.ipc.new_stream(self._facts, facts_schema()),
            pa.ipc.new_stream(self._samples, samples_schema(), options=options),
        )
        self._held: list[Row] = []
        self._tokens = 0

    def add(self, row: Row) -> None:
        self._held.append(row)
        self._tokens += len(row.encoded.input_ids)
        if len(self._held) == ROWS or self._tokens >= TOKENS:
            self._flush()

    def finish(self) -> GroupRows:
        """All of them."""
        if self._held:
            self._flush()
        for writer in self._writers:
            writer.close()
        return GroupRows(self._facts.getvalue().to_pybytes(), self._samples.getvalue().to_pybytes())

    def _flush(self) -> None:
        for writer, batch in zip(self._writers, batches_of(self._held), strict=True):
            writer.write_batch(batch)
        self._held, self._tokens = [], 0


def _with_pages(document: DocumentRef, probes: MediaProbes) -> DocumentRef:
    """The document with the numbers of its pages; the pages of a PDF are the frames of it as a video."""
    pages = document.pages or range(1, probes.video(VideoRef(document.path)).frames + 1)
    return replace(document, pages=tuple(pages))


def _example(at: int, sample: Sample, n: int, planned: _Planned) -> dict[str, Any]:
    """What a page shows of one sample: its first question and answer, its pictures, and what it gave up."""
    said = {role: next((m.text for m in sample.messages if m.role == role), "") for role in ("user", "assistant")}
    encoded, plan = planned.encoded[n], planned.plans[n]
    return {
        "number": at,
        "question": said["user"][:_SHOWN_CHARACTERS],
        "answer": said["assistant"][:_SHOWN_CHARACTERS],
        "context_length": n,
        "tokens": plan.length,
        "tiles": plan.tiles,
        "degraded": list(plan.record),
        "units": json.loads(units_to_json(encoded.units[:_SHOWN_UNITS])),
    }
