"""The frame indexes of a dataset's videos, stored beside its prepared samples: loading opens a video without reading its tables.

One parquet file per dataset folder, `media-index.parquet`: `path` string, `size` and `mtime_ns` int64 (what the file was when it
was indexed), `frames` int64, and `index` binary, as `FrameIndex.to_bytes` gives it. Holds no pixels and no bytes of the media.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MediaError
from .fetch import Fetch, is_address
from .references import parse_reference
from .video import Video, open_video

if TYPE_CHECKING:
    from .media.frame_index import FrameIndex

__all__ = ["MediaIndexWriter", "PreparedMedia", "media_index_file"]

# A group is what one look-up decompresses; an index takes about 9 bytes a frame.
_GROUP_BYTES = 1 << 18
_GROUPS_KEPT = 4


def media_index_file(folder: str | Path) -> Path:
    """Where the indexes of a prepared dataset folder lie."""
    return Path(folder) / "media-index.parquet"


class MediaIndexWriter:
    """Writes the indexes of one dataset; the file takes its name when the block ends well."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        self._path, self._schema = media_index_file(folder), _schema()
        self._part = self._path.with_name(self._path.name + ".part")
        self._writer = pq.ParquetWriter(
            self._part, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, path: str, index: FrameIndex) -> None:
        """Store the index of the video that annotations call `path`; once for each path."""
        data = index.to_bytes()
        known = {"size": index.source_size, "mtime_ns": index.source_mtime_ns, "frames": len(index)}
        self._rows.append({"path": path, **known, "index": data})
        self._bytes += len(data)
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0

    def __enter__(self) -> MediaIndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)


class PreparedMedia:
    """Opens the videos of a prepared dataset, with their stored indexes where there are any. Safe in several threads.

    Args:
        folder: of the dataset; None, or a folder without `media-index.parquet`, means that nothing is stored.
        fetch: leave to fetch http(s) addresses, as in `open_video`; also for whoever loads the dataset's pictures.
    """

    def __init__(self, folder: str | Path | None = None, *, fetch: Fetch | None = None) -> None:
        self.fetch = fetch
        self._path = None if folder is None else media_index_file(folder)
        self._lock = Lock()
        self._file: Any = None
        self._places: dict[str, tuple[int, int]] | None = None
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def open_video(self, path: str, *, start: float | None = None, end: float | None = None) -> Video:
        """The video that annotations call `path`, or a clip of it, with one decoding thread.

        A video whose size and time are those of its stored index is opened without reading it. Any other is indexed anew, and
        refused unless its frames appear at the very times at which they did when the dataset was prepared.

        Raises:
            MediaError: as `eagle_data.video.open_video`; a video that has changed; a damaged index.
        """
        index = self.index_of(path)
        if index is None or _is_unchanged(path, index):
            return open_video(path, start=start, end=end, threads=1, index=index, fetch=self.fetch)
        video = open_video(path, start=start, end=end, threads=1, fetch=self.fetch)
        if video.index is None or not np.array_equal(video.index.times, index.times):
            video.close()
            reason = "has changed since the dataset was prepared: it has other frames"
            raise MediaError(path, reason, "Prepare the dataset again, or put the old file back")
        return video

    def index_of(self, path: str) -> FrameIndex | None:
        """The stored index of the video that annotations call `path`, None where there is none. Raises MediaError: damaged."""
        from .media.frame_index import FrameIndex

        with self._lock:
            place = self._place_of(path)
            if place is None:
                return None
            group, row = place
            if group in self._groups:
                self._groups.move_to_end(group)
            else:
                self._groups[group] = self._file.read_row_group(group, columns=["index"])["index"]
                if len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            data = self._groups[group][row].as_py()
        return FrameIndex.from_bytes(data, f"{self._path} ({path})")

    def _place_of(self, path: str) -> tuple[int, int] | None:
        """Row group and row in it."""
        if self._places is None:
            import pyarrow.parquet as pq

            self._places = {}
            if self._path is not None and self._path.is_file():
                self._file = pq.ParquetFile(self._path, memory_map=True)
                for group in range(self._file.metadata.num_row_groups):
                    paths = self._file.read_row_group(group, columns=["path"])["path"].to_pylist()
                    self._places.update({name: (group, row) for row, name in enumerate(paths)})
        return self._places.get(path)


def _is_unchanged(path: str, index: FrameIndex) -> bool:
    """Whether a file (of a tar member: its archive) is as it was when it was indexed. One `stat`; none for an address, whose
    length is compared when it is read. A file that is gone is left to whoever opens it."""
    if is_address(path):
        return True
    reference = parse_reference(path)
    try:
        status = os.stat(reference.file)
    except (OSError, ValueError):
        return True
    same_size = reference.kind != "file" or status.st_size == index.source_size
    return same_size and status.st_mtime_ns == index.source_mtime_ns


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("frames", pa.int64()),
            ("index", pa.large_binary()),
        ]
    )
