"""Preparation: recipe to planned, tokenised samples in parquet, with a report and without pixels.

`prepare` reads annotations and media headers, plans every sample for each context length and writes
`<out>/<dataset>/context-<n>.parquet`, `<out>/rejects.jsonl` and `<out>/report.json`. A dataset whose annotations,
media (size and time), tokenizer and rules are unchanged is not redone; files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eagle_data.ads import VisualRules, plan
from eagle_data.annotations import Reject, read_annotations
from eagle_data.encode import Encoded, encode
from eagle_data.errors import EagleDataError, MediaError, SampleError
from eagle_data.images import image_size
from eagle_data.prepared import PreparedWriter
from eagle_data.recipe import DatasetEntry
from eagle_data.samples import Sample
from eagle_data.tokens import PromptTokenizer
from eagle_data.units import load_units
from eagle_data.video import VideoMetadata, probe_video

FORMAT = 1
"""Version of the prepared files; a change makes every dataset be prepared anew."""


@dataclass(frozen=True)
class DatasetReport:
    """Counts of one dataset.

    `read` lines, `prepared` samples that at least one context length took, `rejected` those that none took;
    `degraded` and `too_long` count samples per context length; `reasons` counts rejects by their reason.
    """

    read: int
    prepared: int
    rejected: int
    degraded: dict[str, int]
    too_long: dict[str, int]
    reasons: dict[str, int]


def prepare(
    datasets: Mapping[str, DatasetEntry],
    out: str | Path,
    *,
    context_lengths: Mapping[str, Sequence[int]],
    rules: VisualRules,
    tokenizer: PromptTokenizer,
    verify: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, DatasetReport]:
    """Prepare each dataset for its `context_lengths` (by dataset name) and return the counts.

    `verify` also decodes every picture once, so that damaged media are found now and not in training. `progress` is
    called with the dataset's name and the number of lines done. Bad lines and media go to `rejects.jsonl`; only a
    missing annotation file or recipe error raises.
    """
    out = Path(out)
    reports: dict[str, DatasetReport] = {}
    for name, entry in datasets.items():
        if not entry.annotation.is_file():
            raise FileNotFoundError(f"dataset {name!r}: the annotation file {entry.annotation} does not exist")
        own_rules = replace(rules, max_tiles=entry.max_dynamic_tiles) if entry.max_dynamic_tiles else rules
        lines = list(read_annotations(entry.annotation, dataset=name, root=entry.root))
        lengths = sorted(set(context_lengths[name]))
        key = _cache_key(lines, lengths, own_rules, tokenizer, verify)
        done = _read_done(out / name)
        if done is None or done["key"] != key:
            report = _prepare_one(lines, out / name, lengths, own_rules, tokenizer, verify, progress and _named(progress, name))
            _write_text(out / name / "done.json", json.dumps({"key": key, "report": asdict(report)}, indent=1))
        else:
            report = DatasetReport(**done["report"])
        reports[name] = report
    rejects = "".join((out / name / "rejects.jsonl").read_text() for name in datasets)
    _write_text(out / "rejects.jsonl", rejects)
    _write_text(out / "report.json", json.dumps({name: asdict(report) for name, report in reports.items()}, indent=1) + "\n")
    return reports


def _named(progress: Callable[[str, int], None], name: str) -> Callable[[int], None]:
    return lambda done: progress(name, done)


def _prepare_one(
    lines: Sequence[Sample | Reject],
    folder: Path,
    lengths: Sequence[int],
    rules: VisualRules,
    tokenizer: PromptTokenizer,
    verify: bool,
    progress: Callable[[int], None] | None,
) -> DatasetReport:
    rejects: list[dict] = []
    reasons: Counter[str] = Counter()
    degraded = {str(n): 0 for n in lengths}
    too_long = {str(n): 0 for n in lengths}
    prepared = rejected = 0
    probes: dict[object, VideoMetadata] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with PreparedWriter(folder, lengths) as writer:
        for number, line in enumerate(lines, 1):
            taken = False
            if isinstance(line, Reject):
                _reject(rejects, reasons, line)
            else:
                try:
                    taken = _plan_one(line, writer, lengths, rules, tokenizer, verify, probes, degraded, too_long, rejects, reasons)
                except (MediaError, SampleError) as error:
                    reason = error.reason if isinstance(error, SampleError) else str(error)
                    _reject(rejects, reasons, Reject(line.dataset, line.where, reason))
            prepared += taken
            rejected += not taken
            if progress is not None and (number % 64 == 0 or number == len(lines)):
                progress(number)
    _write_text(folder / "rejects.jsonl", "".join(json.dumps(reject) + "\n" for reject in rejects))
    return DatasetReport(len(lines), prepared, rejected, degraded, too_long, dict(reasons))


def _plan_one(
    sample: Sample,
    writer: PreparedWriter,
    lengths: Sequence[int],
    rules: VisualRules,
    tokenizer: PromptTokenizer,
    verify: bool,
    probes: dict[object, VideoMetadata],
    degraded: dict[str, int],
    too_long: dict[str, int],
    rejects: list[dict],
    reasons: Counter[str],
) -> bool:
    """Plan and store one sample for every context length; whether at least one took it."""
    sizes = [image_size(ref.source) for ref in sample.images]
    infos = []
    for ref in sample.videos:
        if ref not in probes:
            probes[ref] = probe_video(ref.path, start=ref.start, end=ref.end)
        infos.append(probes[ref])
    encoded: dict[int, tuple[Encoded, tuple[str, ...]]] = {}
    for context_length in lengths:
        try:
            chosen = plan(
                sample, image_sizes=sizes, video_infos=infos, context_length=context_length, rules=rules, tokenizer=tokenizer
            )
        except SampleError as error:
            too_long[str(context_length)] += 1
            _reject(rejects, reasons, Reject(sample.dataset, sample.where, error.reason), context_length)
            continue
        encoded[context_length] = (encode(sample, chosen, rules=rules, tokenizer=tokenizer), chosen.degraded)
    if verify and encoded:
        longest = encoded[max(encoded)][0]
        load_units(longest.units, tile_size=rules.tile_size, use_thumbnail=rules.use_thumbnail)
    for context_length, (value, given_up) in encoded.items():
        writer.add(context_length, sample.where, value, given_up)
        degraded[str(context_length)] += bool(given_up)
    return bool(encoded)


def _reject(rejects: list[dict], reasons: Counter[str], reject: Reject, context_length: int | None = None) -> None:
    entry = asdict(reject)
    if context_length is not None:
        entry["context_length"] = context_length
    rejects.append(entry)
    reasons[reject.reason.split(";")[0].split(":")[-1].strip()] += 1


def _cache_key(
    lines: Iterable[Sample | Reject], lengths: Sequence[int], rules: VisualRules, tokenizer: PromptTokenizer, verify: bool
) -> str:
    digest = hashlib.sha256()
    digest.update(repr((FORMAT, lengths, rules, tokenizer.fingerprint, verify)).encode())
    seen: set[str] = set()
    for line in lines:
        digest.update(repr(line).encode())
        if isinstance(line, Sample):
            for path in (*(ref.path for ref in line.images), *(ref.path for ref in line.videos)):
                if path not in seen:
                    seen.add(path)
                    digest.update(_stamp(path).encode())
    return digest.hexdigest()


def _stamp(path: str) -> str:
    try:
        status = os.stat(os.path.join(path, "data.mdb") if os.path.isdir(path) else path)
    except OSError:
        return f"{path} missing"
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _read_done(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "done.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


__all__ = ["DatasetReport", "EagleDataError", "prepare"]
