"""Pictures into an LMDB store and back: tar, parquet, folders, and JSONL with its files.

Promises that a conversion killed at any moment goes on where it was, that every value is read back and compared by SHA-256 before
the result appears under its name, and that what could not be read is listed in `rejects.jsonl` and never dropped in silence.
Sources are `lmdb_sources`, the ways back `lmdb_exports`. Not for decoding: values are copied byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from .errors import MediaError
from .lmdb_sources import Annotations, Entry, LmdbSource, key_of, open_source, rewrite, text_of
from .lmdb_store import LmdbStore, LmdbWriter

__all__ = ["CHECKSUMS", "Conversion", "checksums_of", "to_lmdb"]

CHECKSUMS = "checksums.sha256"
"""File in a finished store: one `<sha256>  <key>` a line, as the program sha256sum writes."""

_RECORD = "conversion.json"
_BATCH_BYTES, _BATCH_ENTRIES = 64 << 20, 4096
Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        entries: of the source.
        stored: values in the result, all compared by hash.
        rejected: entries that could not be read or stored, listed in `rejects.jsonl`.
        bytes: of the stored values.
        resumed: entries that an earlier, interrupted run had done; the whole number when nothing was left to do.
    """

    entries: int
    stored: int
    rejected: int
    bytes: int
    resumed: int = 0


def to_lmdb(
    source: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    column: str | None = None,
    key_column: str | None = None,
    progress: Progress | None = None,
    batch_bytes: int = _BATCH_BYTES,
) -> Conversion:
    """Store the pictures of `source` in a new LMDB store, the folder `out`.

    A JSONL source also gives `<out>.jsonl`: the same annotations, for the same root, with LMDB references in place of files. The
    work is done in `<out>.part`, which a later call goes on with; a finished conversion of the same source is not done again.

    Args:
        source: a tar archive, a parquet file or folder of them, a JSONL file, or a folder of files.
        root: of a JSONL source, see `lmdb_sources.open_source`.
        column: of a parquet source, likewise.
        key_column: of a parquet source, likewise.
        out: a folder that does not exist, or the result of the same conversion.
        progress: called with "copy" or "check", entries done, and how many there are (None: not known yet).
        batch_bytes: committed at once; what a kill can cost.

    Raises:
        MediaError: an unreadable source, an `out` that is something else, or a value that does not read back as it was.
    """
    opened = open_source(Path(source), root=None if root is None else Path(root), column=column, key_column=key_column)
    out = Path(out)
    finished = _finished(out, opened)
    if finished is not None:
        return finished
    part = out.with_name(out.name + ".part")
    _begin(part, opened)
    with LmdbWriter(part) as writer, (part / "done.log").open("ab+") as log:
        resumed = _whole_lines(log)
        done = resumed
        for batch in _batches(opened.entries(resumed), batch_bytes):
            _store(batch, writer, log)
            done += len(batch)
            if progress is not None:
                progress("copy", done, opened.total)
    report = _checked(part, done, resumed, progress)
    if isinstance(opened, Annotations):
        _write_annotations(opened, part, out)
    LmdbStore(part).close()
    _write(part / _RECORD, json.dumps({"stamp": opened.stamp, "report": asdict(report)}))
    for name in ("lock.mdb", "done.log"):
        (part / name).unlink(missing_ok=True)
    os.replace(part, out)
    return report


def checksums_of(store: str | Path) -> dict[str, str]:
    """Key to SHA-256 of a store that `to_lmdb` wrote; empty for any other store."""
    path = Path(store) / CHECKSUMS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="ascii").split("\n")  # not splitlines: a key may hold any control character but this
    return {line[66:]: line[:64] for line in lines if line}


def _finished(out: Path, source: LmdbSource) -> Conversion | None:
    if not out.exists():
        return None
    try:
        record = json.loads((out / _RECORD).read_text(encoding="utf-8"))
        if record["stamp"] == source.stamp:
            return replace(Conversion(**record["report"]), resumed=record["report"]["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not a store that this function finished
    raise MediaError(str(out), "exists and is not the result of this conversion", "Give another folder, or remove it")


def _begin(part: Path, source: LmdbSource) -> None:
    """Make the folder of an unfinished conversion, or keep it where it is one of the same source."""
    record = json.dumps({"stamp": source.stamp})
    if part.exists() and not ((part / _RECORD).is_file() and (part / _RECORD).read_text(encoding="utf-8") == record):
        # Left by another source, or by a kill after its last value was checked: nothing in it can be gone on with.
        shutil.rmtree(part)
    if not part.exists():
        part.mkdir(parents=True)
        _write(part / _RECORD, record)


def _whole_lines(log: IO[bytes]) -> int:
    """The number of whole lines in the log; a line torn by a kill is cut off."""
    log.seek(0)
    data = log.read()
    end = data.rfind(b"\n") + 1
    log.truncate(end)
    log.seek(0, os.SEEK_END)
    return data.count(b"\n")


@dataclass(frozen=True)
class _Read:
    key: str
    value: bytes | None
    reason: str


def _batches(entries: Iterator[Entry], batch_bytes: int) -> Iterator[list[_Read]]:
    batch: list[_Read] = []
    size = 0
    for entry in entries:
        try:
            batch.append(_Read(entry.key, entry.read(), ""))
            size += len(batch[-1].value or b"")
        except MediaError as error:
            batch.append(_Read(entry.key, None, str(error)))
        if size >= batch_bytes or len(batch) >= _BATCH_ENTRIES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _store(batch: list[_Read], writer: LmdbWriter, log: IO[bytes]) -> None:
    """Values first, then their lines in the log: a kill in between writes the same values once more, and nothing is lost."""
    accepted: dict[str, bytes] = {}
    lines = []
    for item in batch:
        reason = item.reason
        if item.value is not None:
            try:
                writer.check(item.key, item.value)
                earlier = accepted.get(item.key, writer.get(item.key))
                if earlier is not None and earlier != item.value:
                    reason = f"{item.key}: the key was given twice, with two values; the first was kept."
            except MediaError as error:
                reason = str(error)
        if item.value is None or reason:
            lines.append({"key": item.key, "reason": reason})
        else:
            accepted[item.key] = item.value
            lines.append({"key": item.key, "sha256": hashlib.sha256(item.value).hexdigest(), "bytes": len(item.value)})
    writer.commit(list(accepted.items()))
    log.write("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))
    log.flush()
    os.fsync(log.fileno())


def _checked(part: Path, total: int, resumed: int, progress: Progress | None) -> Conversion:
    """Read every stored value back and compare it; writes the checksums and the rejects."""
    store = LmdbStore(part)
    stored = size = rejected = 0
    with (
        (part / "done.log").open("rb") as log,
        (part / CHECKSUMS).open("w", encoding="ascii") as checksums,
        (part / "rejects.jsonl").open("w", encoding="ascii") as rejects,
    ):
        seen: set[bytes] = set()
        for number, text in enumerate(log, 1):
            line: dict[str, Any] = json.loads(text)
            if "sha256" not in line:
                rejects.write(json.dumps(line) + "\n")
                rejected += 1
            elif (short := hashlib.blake2b(line["key"].encode(), digest_size=16).digest()) not in seen:
                # The same key with the same value twice is one value.
                seen.add(short)
                if hashlib.sha256(store.get(line["key"])).hexdigest() != line["sha256"]:
                    raise MediaError(
                        f"{part}[{line['key']}]", "does not read back as it was written", "Check the disk; remove it"
                    )
                checksums.write(f"{line['sha256']}  {line['key']}\n")
                stored, size = stored + 1, size + line["bytes"]
            if progress is not None and (number % 256 == 0 or number == total):
                progress("check", number, total)
    if len(store) != stored:
        raise MediaError(str(part), f"holds {len(store)} values, not {stored}", "Remove it and convert again")
    return Conversion(total, stored, rejected, size, resumed)


def _write_annotations(source: Annotations, part: Path, out: Path) -> None:
    store = LmdbStore(part)
    where = os.path.relpath(out, source.root)

    def replaced(item: Any) -> Any:
        key = key_of(text_of(item))
        return {"lmdb_file": where, "lmdb_key": key} if len(key) <= 511 and key in store else item

    rewrite(source.path, out.with_name(out.name + ".jsonl"), replaced)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
