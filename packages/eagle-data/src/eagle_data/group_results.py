"""What preparation made of one group of records, as a file: rows for each context length, refusals, counts, video indexes.

Promises that a file is there whole or not at all, that damage is noticed when the damaged part is read, and that a file's name
says what was prepared, from what, and by which code (`GroupSettings.key`). Parts are read when they are asked for: tokens only
for a shard that has to be written. Media are listed with their stamps, so that it can be told whether the result still holds.
Not for loading: `prepared` has the samples of a dataset in order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle_data.media_stamps import MediaStamps
from eagle_data.prepare_counts import Tally

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"eagle-data group 2\n"


@dataclass(frozen=True)
class Refusal:
    """A record that is left out, or that one context length does not take: its number in the file, and why."""

    number: int
    reason: str
    kind: str
    context_length: int | None = None


@dataclass(frozen=True)
class GroupRows:
    """The rows of a group for one context length, as Arrow streams of the same batches, a row group each (`prepared_rows`)."""

    facts: bytes
    samples: bytes


@dataclass(frozen=True)
class StoredIndex:
    """The frame index of a video as bytes, with what `MediaIndexWriter` asks of an index."""

    path: str
    source_size: int
    source_mtime_ns: int
    frames: int
    data: bytes

    def __len__(self) -> int:
        return self.frames

    def to_bytes(self) -> bytes:
        return self.data


class DamagedGroup(Exception):
    """A part of a stored result is not what was stored."""


@dataclass
class GroupResult:
    """The result of one group, as it is made.

    Numbers in `rejects`, `too_long` and the facts of rows count from the group's first record, which is 0: a group that moved in
    its file is still the same. `rows` are those of each context length. `example` describes one sample.
    """

    media: list[tuple[str, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    rejects: list[Refusal] = field(default_factory=list)
    too_long: list[Refusal] = field(default_factory=list)
    rows: dict[int, GroupRows] = field(default_factory=dict)
    indexes: list[StoredIndex] = field(default_factory=list)
    example: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """The file: magic, length of the header, its digest, header, then the parts that the header lists."""
        parts = [part for rows in self.rows.values() for part in (rows.facts, rows.samples)]
        parts += [index.data for index in self.indexes]
        header = {
            "media": self.media,
            "tally": self.tally.to_json(),
            "rejects": [asdict(refusal) for refusal in self.rejects],
            "too_long": [asdict(refusal) for refusal in self.too_long],
            "example": self.example,
            "lengths": list(self.rows),
            "indexes": [[i.path, i.source_size, i.source_mtime_ns, i.frames] for i in self.indexes],
            "parts": [[len(part), _digest(part)] for part in parts],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), _digest(text).encode(), text, *parts])


@dataclass(frozen=True)
class _Part:
    """Where a part of a stored result lies in its file."""

    start: int
    size: int
    digest: str


class StoredGroup:
    """A stored result: what its header says, and its parts, read and checked each time.

    Every method that reads a part raises DamagedGroup where it is not what was stored, before it gives anything.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], start: int) -> None:
        self.media = [(name, stamp) for name, stamp in header["media"]]
        self.tally = Tally.from_json(header["tally"])
        self.rejects = [Refusal(**values) for values in header["rejects"]]
        self.too_long = [Refusal(**values) for values in header["too_long"]]
        self.example: dict[str, Any] | None = header["example"]
        self._path = path
        parts = []
        for size, digest in header["parts"]:
            parts.append(_Part(start, size, digest))
            start += size
        at = 2 * len(header["lengths"])
        self._rows = {n: (parts[2 * i], parts[2 * i + 1]) for i, n in enumerate(header["lengths"])}
        self._indexes = [
            (StoredIndex(path=name, source_size=size, source_mtime_ns=mtime_ns, frames=frames, data=b""), part)
            for (name, size, mtime_ns, frames), part in zip(header["indexes"], parts[at:], strict=True)
        ]

    def holds(self, stamps: MediaStamps) -> bool:
        """Whether every medium is as it was when the group was prepared."""
        return all(stamps.of(path) == stamp for path, stamp in self.media)

    def facts(self, context_length: int) -> list[pa.RecordBatch]:
        """The facts of the rows of a context length, a batch for each row group."""
        return list(_batches(self._read(self._rows[context_length][0])))

    def samples(self, context_length: int) -> Iterator[pa.RecordBatch]:
        """The samples of a context length, a batch for each row group."""
        return _batches(self._read(self._rows[context_length][1]))

    def samples_digest(self, context_length: int) -> str:
        """Changes with the samples of a context length."""
        return self._rows[context_length][1].digest

    def samples_size(self, context_length: int) -> int:
        """Stored bytes of the samples of a context length."""
        return self._rows[context_length][1].size

    def indexes(self, wanted: Callable[[str], bool]) -> list[StoredIndex]:
        """The indexes of videos whose names are `wanted`."""
        return [replace(index, data=self._read(part)) for index, part in self._indexes if wanted(index.path)]

    def _read(self, part: _Part) -> bytes:
        try:
            with self._path.open("rb") as stream:
                stream.seek(part.start)
                data = stream.read(part.size)
        except OSError as error:
            raise DamagedGroup(str(error)) from error
        if _digest(data) != part.digest:
            raise DamagedGroup(f"{self._path} is damaged")
        return data


class GroupStore:
    """The results of one dataset's groups, a file each, by key. Any number of processes may write at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the result of a group lies."""
        return self.folder / key[:2] / key[2:]

    def save(self, key: str, result: GroupResult) -> None:
        """Store a result; it appears whole, in place of an older one."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(result.to_bytes())
        os.replace(part, path)

    def load(self, key: str) -> StoredGroup | None:
        """The result, of which the header is read; None where there is none, one that is cut short, or a damaged header."""
        path = self.path(key)
        try:
            with path.open("rb") as stream:
                start = stream.read(len(_MAGIC) + 8 + 32)
                length = int.from_bytes(start[len(_MAGIC) : len(_MAGIC) + 8], "little")
                size = os.fstat(stream.fileno()).st_size
                if not start.startswith(_MAGIC) or length > size:
                    return None
                text = stream.read(length)
        except OSError:
            return None
        if _digest(text).encode() != start[-32:]:
            return None
        header = json.loads(text)
        whole = len(start) + length + sum(size for size, _ in header["parts"])
        return StoredGroup(path, header, len(start) + length) if size == whole else None

    def keep_only(self, keys: set[str]) -> None:
        """Remove every result but those of `keys`, and what writers left behind that were killed."""
        if not self.folder.is_dir():
            return
        for inner in self.folder.iterdir():
            for path in inner.iterdir():
                if inner.name + path.name not in keys:
                    path.unlink(missing_ok=True)


def _batches(data: bytes) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        yield from stream


def _digest(part: bytes) -> str:
    return hashlib.blake2b(part, digest_size=16).hexdigest()
