"""What preparation made of one group of records, as a file: rows for each context length, refusals, counts, video indexes.

Promises that a file is there whole or not at all, that damage is noticed when it is read, and that a file's name says what was
prepared, from what, and by which code (`GroupSettings.key`). Media are listed with their stamps, so that it can be told whether
the result still holds. Not for loading: `prepared` has the samples of a dataset in order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle_data.media_stamps import MediaStamps
from eagle_data.prepare_counts import Tally

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"eagle-data group 1\n"


@dataclass(frozen=True)
class Refusal:
    """A record that is left out, or that one context length does not take: its number in the file, and why."""

    number: int
    reason: str
    kind: str
    context_length: int | None = None


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


@dataclass
class GroupResult:
    """The result of one group.

    Numbers in `rejects`, `too_long` and the column `number` of rows count from the group's first record, which is 0: a group that
    moved in its file is still the same. `rows` holds an Arrow stream per context length. `example` describes one sample.
    """

    media: list[tuple[str, str]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    rejects: list[Refusal] = field(default_factory=list)
    too_long: list[Refusal] = field(default_factory=list)
    rows: dict[int, bytes] = field(default_factory=dict)
    indexes: list[StoredIndex] = field(default_factory=list)
    example: dict[str, Any] | None = None

    def batches(self, context_length: int) -> Iterable[pa.RecordBatch]:
        """The rows of a context length, a batch for each row group."""
        import pyarrow as pa

        with pa.ipc.open_stream(self.rows[context_length]) as stream:
            yield from stream

    def holds(self, stamps: MediaStamps) -> bool:
        """Whether every medium is as it was when the group was prepared."""
        return all(stamps.of(path) == stamp for path, stamp in self.media)

    def to_bytes(self) -> bytes:
        """The file: magic, length of the header, its digest, header, rows and indexes."""
        blobs = [*self.rows.values(), *(index.data for index in self.indexes)]
        header = {
            "media": self.media,
            "tally": self.tally.to_json(),
            "rejects": [asdict(refusal) for refusal in self.rejects],
            "too_long": [asdict(refusal) for refusal in self.too_long],
            "rows": {str(n): len(data) for n, data in self.rows.items()},
            "indexes": [[i.path, i.source_size, i.source_mtime_ns, i.frames, len(i.data)] for i in self.indexes],
            "example": self.example,
            "digest": _digest(*blobs),
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        return b"".join([_MAGIC, len(text).to_bytes(8, "little"), _digest(text).encode(), text, *blobs])


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

    def header(self, key: str) -> GroupResult | None:
        """The result without its rows and indexes; None where there is none, or a damaged one."""
        return self._read(key, whole=False)

    def load(self, key: str) -> GroupResult | None:
        """The result; None where there is none, or a damaged one."""
        return self._read(key, whole=True)

    def keep_only(self, keys: set[str]) -> None:
        """Remove every result but those of `keys`, and what writers left behind that were killed."""
        if not self.folder.is_dir():
            return
        for inner in self.folder.iterdir():
            for path in inner.iterdir():
                if inner.name + path.name not in keys:
                    path.unlink(missing_ok=True)

    def _read(self, key: str, *, whole: bool) -> GroupResult | None:
        try:
            with self.path(key).open("rb") as stream:
                start = stream.read(len(_MAGIC) + 8 + 32)
                length = int.from_bytes(start[len(_MAGIC) : len(_MAGIC) + 8], "little")
                if not start.startswith(_MAGIC) or length > os.fstat(stream.fileno()).st_size:
                    return None
                text = stream.read(length)
                if _digest(text).encode() != start[-32:]:
                    return None
                header = json.loads(text)
                result = GroupResult(
                    media=[(path, stamp) for path, stamp in header["media"]],
                    tally=Tally.from_json(header["tally"]),
                    rejects=[Refusal(**values) for values in header["rejects"]],
                    too_long=[Refusal(**values) for values in header["too_long"]],
                    example=header["example"],
                )
                if whole:
                    result.rows = {int(n): stream.read(size) for n, size in header["rows"].items()}
                    result.indexes = [
                        StoredIndex(path, source_size, source_mtime_ns, frames, stream.read(size))
                        for path, source_size, source_mtime_ns, frames, size in header["indexes"]
                    ]
                    if _digest(*result.rows.values(), *(index.data for index in result.indexes)) != header["digest"]:
                        return None
                return result
        except OSError:
            return None


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
