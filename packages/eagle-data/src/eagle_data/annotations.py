"""Annotations to `Sample` values: Eagle's schema, and through `record_forms` those of LLaVA, ShareGPT and OpenAI messages.

Both spellings of upstream section 3.2 are read: the legacy keys `image` / `video`, the unified `data` list as the code has it
(`video_list: [{video, start_time, end_time}]`) and as its documents have it (`{path, start, end}`, bare strings); so are
documents (`document`, `document_list: [{document, pages}]`; PDFs, no pages mean all). A record that cannot be read, or that
names media which nothing reads (`media_keys`), becomes a `Reject` with file, line, reason and mend; it never stops a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle_data.annotation_files import chunks, records
from eagle_data.errors import SampleError
from eagle_data.media_keys import refuse_unread_keys, refuse_unread_marks
from eagle_data.placeholders import number_placeholders
from eagle_data.record_forms import RANGES, to_eagle
from eagle_data.samples import DocumentRef, ImageRef, Message, Role, Sample, VideoRef

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "observation",
}
_DATA_FORM = (
    '"data" must be a list of {"type": "image", "image_list": […]}, {"type": "video", "video_list": […]} or '
    '{"type": "document", "document_list": […]}'
)


@dataclass(frozen=True)
class Reject:
    """One annotation line or sample that is left out: where it stands (`file:line`), why, and the kind it counts as."""

    dataset: str
    where: str
    reason: str
    kind: str = "bad record"

    def to_json(self) -> dict[str, Any]:
        """The entry of `rejects.jsonl`: dataset, file, line (a number), where, reason, kind."""
        file, _, line = self.where.rpartition(":")
        values = {"dataset": self.dataset, "file": file, "line": int(line) if line.isdigit() else None}
        return {**values, "where": self.where, "reason": self.reason, "kind": self.kind}


def read_annotations(path: str | Path, *, dataset: str, root: str | Path = "") -> Iterator[Sample | Reject]:
    """Yield one `Sample` or `Reject` per record, in the order of the file.

    `path` is JSONL, a JSON array, parquet, or a folder with a dataset (`annotation_files`). `root` is joined to relative media
    paths. Raises FileNotFoundError where the file itself is missing.
    """
    for chunk in chunks(path):
        for number, record in records(chunk):
            yield read_record(record, dataset=dataset, where=f"{chunk.file}:{number}", root=root)


def read_record(record: Any, *, dataset: str, where: str, root: str | Path = "") -> Sample | Reject:
    """What `annotation_files.records` gave, as a sample or as the reason why it is none."""
    try:
        if isinstance(record, SampleError):
            raise record
        return parse_record(record, dataset=dataset, where=where, root=root)
    except SampleError as error:
        return Reject(dataset, where, error.reason, error.kind)


def parse_record(record: Any, *, dataset: str, where: str, root: str | Path = "") -> Sample:
    """One decoded JSON record to a `Sample`; raises SampleError that says what is wrong and how to mend it."""
    if not isinstance(record, Mapping):
        raise SampleError(where, f"a record must be a JSON object, not {type(record).__name__}")
    record = to_eagle(record, where)
    messages = _messages(record.get("conversations"), where)
    images, videos, documents = _media(record, where, str(root))
    for kind, refs in (("video", videos), ("document", documents)):
        stray = next((key for key in RANGES[kind] if refs and record.get(key) is not None), None)
        if stray is not None:
            raise SampleError(
                where, f'"{stray}" stands beside the {kind}s; write it into the object of one', "bad media reference"
            )
    refuse_unread_keys(record, read=[ref.path for ref in (*images, *videos, *documents)], where=where)
    asked = [message.text for message in messages if message.role != "assistant"]
    refuse_unread_marks(asked, record, documents=len(documents), where=where)
    messages = number_placeholders(messages, images=len(images), videos=len(videos), documents=len(documents), where=where)
    return Sample(dataset, where, messages, tuple(images), tuple(videos), tuple(documents))


def _messages(conversations: Any, where: str) -> list[Message]:
    if not isinstance(conversations, list) or not conversations:
        raise SampleError(
            where,
            'the conversation is empty; "conversations" must be a list of {"from", "value"} turns',
            "empty conversation",
        )
    messages = []
    for number, turn in enumerate(conversations, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise SampleError(where, f'turn {number} must be an object with the strings "from" and "value"', "bad turn")
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise SampleError(where, f"turn {number} is from {turn.get('from')!r}; use one of {', '.join(_ROLES)}", "bad turn")
        if role == "system" and number > 1:
            raise SampleError(where, f"turn {number} is a system turn; only the first turn can be one", "bad turn")
        if not _is_text(turn["value"]):
            raise SampleError(where, f"turn {number} holds half a surrogate pair, which is no character; remove it", "bad turn")
        messages.append(Message(role, turn["value"], learned=turn.get("learned", True)))
    answers = [message for message in messages if message.role == "assistant" and message.text.strip()]
    if answers and not any(answer.learned for answer in answers):
        raise SampleError(
            where,
            'no answer of the conversation is learned; give at least one "weight": 1, or leave the record out',
            "nothing learned",
        )
    if not answers:
        raise SampleError(
            where,
            "the conversation has no answer to learn from; give it at least one gpt turn that is not empty",
            "empty conversation",
        )
    return messages


def _media(record: Mapping[str, Any], where: str, root: str) -> tuple[list[ImageRef], list[VideoRef], list[DocumentRef]]:
    images = [_image(item, where, root) for item in _items(record, "image")]
    videos = [_video(item, where, root) for item in _items(record, "video")]
    documents = [_document(item, where, root) for item in _items(record, "document")]
    data = record.get("data") or []
    if not isinstance(data, list):
        raise SampleError(where, _DATA_FORM)
    if data and (images or videos or documents):
        raise SampleError(where, 'the record has both "data" and "image"/"video"/"document"; use one form')
    for entry in data:
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        lists = {str(key) for key, value in entry.items() if str(key).endswith("_list") and value} if kind else set()
        if kind == "text" and not lists:
            continue
        if kind not in ("image", "video", "document") or f"{kind}_list" not in entry or lists - {f"{kind}_list"}:
            raise SampleError(where, f"{_DATA_FORM}, not {json.dumps(entry)[:80]}")
        for item in _as_list(entry[f"{kind}_list"]):
            if kind == "image":
                images.append(_image(item, where, root))
            elif kind == "document":
                documents.append(_document(item, where, root))
            else:
                videos.append(_video(item, where, root))
    return images, videos, documents


def _items(record: Mapping[str, Any], kind: str) -> list[Any]:
    """What stands under the key of a kind; an entry as in `data`, `{"type": …, "document_list": […]}`, stands for its list."""
    items: list[Any] = []
    for item in _as_list(record.get(kind)):
        listed = isinstance(item, Mapping) and f"{kind}_list" in item
        items.extend(_as_list(item[f"{kind}_list"]) if listed else [item])
    return items


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _join(root: str, path: Any, where: str) -> str:
    if not isinstance(path, str) or not path or "\0" in path or not _is_text(path):
        raise SampleError(where, f"a media path must be a non-empty string, not {path!r}", "bad media reference")
    if path.startswith(("http://", "https://", "file://", "data:")):
        return path
    return str(Path(root) / path)


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8. JSON may spell half a surrogate pair, which tokenizers and paths refuse."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _image(item: Any, where: str, root: str) -> ImageRef:
    if isinstance(item, Mapping):
        if "lmdb_file" in item or "lmdb_key" in item:
            key = item.get("lmdb_key")
            if isinstance(key, bool) or not isinstance(key, (str, int)) or not _is_text(str(key)):
                raise SampleError(where, f"lmdb_key must be a string, not {key!r}", "bad media reference")
            return ImageRef(_join(root, item.get("lmdb_file"), where), str(key))
        item = item.get("image", item.get("path"))
        if item is None:
            raise SampleError(where, "an image object needs lmdb_file and lmdb_key, or image or path", "bad media reference")
    return ImageRef(_join(root, item, where))


def _video(item: Any, where: str, root: str) -> VideoRef:
    if not isinstance(item, Mapping):
        return VideoRef(_join(root, item, where))
    path = item.get("video", item.get("path"))
    if path is None:
        raise SampleError(
            where, "a video object needs video (or path), with start_time and end_time for a clip", "bad media reference"
        )
    start = _seconds(item, ("start_time", "start"), where)
    end = _seconds(item, ("end_time", "end"), where)
    if end is not None and end <= (start or 0.0):
        raise SampleError(where, f"the clip ends at {end:g} s, not after its start at {start or 0:g} s", "bad media reference")
    return VideoRef(_join(root, path, where), start, end)


def _document(item: Any, where: str, root: str) -> DocumentRef:
    if not isinstance(item, Mapping):
        return DocumentRef(_join(root, item, where), ())
    pages = item.get("pages")
    if pages is not None and (
        not isinstance(pages, list) or not pages or not all(type(page) is int and page >= 1 for page in pages)
    ):
        raise SampleError(
            where,
            f"pages must be a list of page numbers from 1, or be left out for all pages, not {pages!r}",
            "bad media reference",
        )
    return DocumentRef(_join(root, item.get("document", item.get("path")), where), tuple(pages or ()))


def _seconds(item: Mapping[str, Any], keys: tuple[str, ...], where: str) -> float | None:
    for key in keys:
        value = item.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise SampleError(where, f"{key} must be seconds (a number >= 0), not {value!r}", "bad media reference")
        return float(value)
    return None
