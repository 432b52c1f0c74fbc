"""Annotation files in any form, cut into groups of neighbouring records: JSONL, JSON array, parquet, Hugging Face datasets.

Promises records in the order of the file, with bounded memory whatever its size, and groups that follow from the content: a
line that is changed, added or taken away changes the groups near it and no other (of rows: those behind it too, where their
number changed). A group is what preparation remembers and redoes. Not for what a record means: `record_forms`, `annotations`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eagle_data.cell_columns import NO_CELLS, CellColumns, cell_columns, column_that_counts, counts
from eagle_data.errors import SampleError
from eagle_data.media_keys import names_media

if TYPE_CHECKING:
    import pyarrow as pa

LEAST, MOST = 32, 128
"""Records of a group of lines: at least and at most. Rows come in groups of `MOST`."""
_MOST_BYTES = 4 << 20
_READ_AT_ONCE = 1 << 20
_LONGEST_ITEM = 64 << 20


@dataclass(frozen=True)
class Chunk:
    """One group of records.

    `first` is the number of its first record, as messages give it: lines, and items of a JSON array, count from 1, rows from 0.
    `payload` holds lines, or an Arrow stream of rows, in which `cells` have counts in place of encoded bytes: their media
    are named as `file.parquet::column::row`, with `::item` behind it for those of a list.
    """

    file: str
    first: int
    kind: Literal["lines", "rows"]
    payload: bytes
    cells: CellColumns = NO_CELLS

    @property
    def content(self) -> bytes:
        """What the records are made of: equal content gives equal records."""
        place = f"{os.path.abspath(self.file)} {self.first}" if self.cells.named else ""
        return json.dumps([self.kind, asdict(self.cells), place]).encode() + b"\0" + self.payload


def chunks(path: str | Path) -> Iterator[Chunk]:
    """The groups of an annotation file, or of a folder that holds a dataset.

    A folder is a dataset that `save_to_disk` of Hugging Face's datasets wrote (of several splits `train`), or it has parquet
    files in it or in its folder `data` (of several splits those whose names begin with `train`). Raises FileNotFoundError.
    """
    path = Path(path)
    tables = _tables(path)
    if tables:
        for file in tables:
            yield from _parquet(file) if file.suffix == ".parquet" else _arrow(file)
    elif path.suffix == ".json" and _starts_with_bracket(path):
        yield from _grouped(str(path), _array_items(path))
    else:
        with path.open("rb") as lines:
            yield from _grouped(str(path), lines)


def count_records(path: str | Path) -> int | None:
    """How many records `chunks` gives, without decoding one; None for a JSON array, which would have to be decoded for it.

    Lines are read, of rows only what their files say of themselves. Raises OSError (FileNotFoundError: a folder without a
    dataset), and ValueError for a file that is damaged or not what its name says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    tables = _tables(path)
    if not tables:
        if path.suffix == ".json" and _starts_with_bracket(path):
            return None
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    count = 0
    for file in tables:
        try:
            if file.suffix == ".parquet":
                count += pq.read_metadata(file).num_rows
                continue
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
                count += sum(batch.num_rows for batch in stream)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} cannot be read ({error}); copy or save it again") from error
    return count


def records(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """The records of a group with their numbers; a SampleError stands for what cannot be decoded. Blank lines are no records."""
    if chunk.kind == "rows":
        yield from _rows(chunk)
        return
    for number, line in enumerate(chunk.payload.split(b"\n"), chunk.first):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # Windows editors put a byte-order mark before the first line.
        if line.strip():
            try:
                yield number, _decoded(line, f"{chunk.file}:{number}")
            except SampleError as error:
                yield number, error


def _grouped(file: str, lines: Iterable[bytes]) -> Iterator[Chunk]:
    """Lines in groups that end at lines chosen by their content, so that groups find back to each other behind a change."""
    held: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(lines, 1):
        held.append(line)
        size += len(line)
        full = len(held) >= MOST or size >= _MOST_BYTES
        if full or (len(held) >= LEAST and zlib.crc32(line) % 64 == 0):
            yield Chunk(file, first, "lines", b"".join(held))
            held, size, first = [], 0, number + 1
    if held:
        yield Chunk(file, first, "lines", b"".join(held))


def _decoded(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SampleError(where, f"the line is not UTF-8 (byte {error.start + 1}); save the file as UTF-8", "not JSON") from error
    except json.JSONDecodeError as error:
        raise SampleError(
            where, f"the line is not JSON ({error.msg} at column {error.colno}); write one object a line", "not JSON"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        raise SampleError(
            where, f"the line is not JSON that can be read ({error}); write one object a line", "not JSON"
        ) from error


def _starts_with_bracket(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array_items(path: Path) -> Iterator[bytes]:
    """The items of a JSON array, a line each. What follows a mistake cannot be told apart: it is one line, which is no JSON."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        text = stream.read(_READ_AT_ONCE)
        at, ended = text.index("[") + 1, False
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            good, value, end = at < len(text), None, at
            if good:
                try:
                    value, end = decoder.raw_decode(text, at)
                except (ValueError, RecursionError):
                    good = False
            if good and (end < len(text) or ended):  # what ends with the text may go on behind it, as a number does
                yield json.dumps(value).encode() + b"\n"
                at = end
                continue
            if ended or len(text) - at > _LONGEST_ITEM:
                yield b"the array ends or breaks off here: " + ascii(text[at : at + 80]).encode() + b"\n"
                return
            more = stream.read(_READ_AT_ONCE)
            text, at, ended = text[at:] + more, 0, not more


def _tables(path: Path) -> list[Path]:
    """The files of rows of an annotation file or folder; none for a file of lines or an array."""
    if path.is_dir():
        return _files_of_folder(path)
    return [path] if path.suffix == ".parquet" else []


def _files_of_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        if "train" not in splits and len(splits) != 1:
            raise FileNotFoundError(f"{folder} has the splits {', '.join(splits)}; give the folder of one of them")
        return _files_of_folder(folder / ("train" if "train" in splits else splits[0]))
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / entry["filename"] for entry in state["_data_files"]]
    found = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    found = [file for file in found if file.name.startswith("train")] or found
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no dataset: no state.json or dataset_dict.json as save_to_disk writes them, and no parquet files"
        )
    return found


def _parquet(path: Path) -> Iterator[Chunk]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, first = file.schema_arrow, 0
        cells = cell_columns(schema)
        counting = {name: column_that_counts(file.metadata, name) for name in cells.named}
        columns = [counting.get(name, name) for name in schema.names if name not in cells.lost]
        whole = [name for name, column in counting.items() if column is None]
        read = [column for column in columns if column is not None]
        for batch in file.iter_batches(batch_size=MOST, columns=read, use_threads=False):
            yield Chunk(str(path), first, "rows", _stream(_counted(batch, cells, whole)), cells)
            first += batch.num_rows


def _arrow(path: Path) -> Iterator[Chunk]:
    import pyarrow as pa

    first = 0
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        cells = cell_columns(stream.schema)
        kept = [name for name in stream.schema.names if name not in cells.lost]
        for batch in stream:
            batch = _counted(batch.select(kept), cells, ())
            for at in range(0, batch.num_rows, MOST):
                part = batch.slice(at, MOST)
                yield Chunk(str(path), first, "rows", _stream(part), cells)
                first += part.num_rows


def _counted(batch: pa.RecordBatch, cells: CellColumns, whole: Sequence[str]) -> pa.RecordBatch:
    """The batch with counts in place of what `cells` hold; those of `whole` were not read, for each has one medium."""
    import pyarrow as pa

    held = zip(batch.schema.names, batch.columns, strict=True)
    columns = {name: counts(column) if name in cells else column for name, column in held}
    columns |= {name: pa.repeat(pa.scalar(1, pa.int32()), batch.num_rows) for name in whole}
    return pa.RecordBatch.from_pydict(columns)


def _stream(batch: pa.RecordBatch) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    # Taken by row number: a slice would drag along bits of its neighbours. Notes in the schema say nothing of records.
    batch = batch.take(pa.array(range(batch.num_rows), pa.int32())).replace_schema_metadata(None)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _rows(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    with pa.ipc.open_stream(chunk.payload) as stream:
        rows = [row for batch in stream for row in batch.to_pylist()]
    lost = [name for name in chunk.cells.lost if names_media(name)]
    for number, row in enumerate(rows, chunk.first):
        if lost:
            yield (
                number,
                SampleError(
                    f"{chunk.file}:{number}",
                    f"the media in column {lost[0]!r} have no name by which they can be found again; "
                    "save bytes, structs of bytes and path, or lists of either in a column, or store media as files",
                    "bad media reference",
                ),
            )
            continue
        record = _without_nothing(row)
        for name in chunk.cells.named:
            if name in record:
                place = f"{os.path.abspath(chunk.file)}::{name}::{number}"
                items = [f"{place}::{item}" for item in range(record[name])]
                record[name] = place if name in chunk.cells.single else items
        yield number, record


def _without_nothing(value: Any) -> Any:
    """The value without the keys that a column has only for other rows."""
    if isinstance(value, dict):
        return {key: _without_nothing(inner) for key, inner in value.items() if inner is not None}
    return [_without_nothing(inner) for inner in value] if isinstance(value, list) else value
