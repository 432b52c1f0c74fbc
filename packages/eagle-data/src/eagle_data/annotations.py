"""Annotation files: JSONL lines in Eagle's schema to `Sample` values.

Both spellings of upstream section 3 are read: the legacy keys `image` / `video`, the unified `data` list as the code
has it (`video_list: [{video, start_time, end_time}]`) and as its documents have it (`{path, start, end}`, bare
strings). A line that cannot be read becomes a `Reject` that names file, line, reason and mend; it never stops a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle_data.errors import SampleError
from eagle_data.placeholders import number_placeholders
from eagle_data.samples import ImageRef, Message, Role, Sample, VideoRef

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "observation",
}


@dataclass(frozen=True)
class Reject:
    """One annotation line or sample that is left out: where it stands and why."""

    dataset: str
    where: str
    reason: str


def read_annotations(path: str | Path, *, dataset: str, root: str | Path = "") -> Iterator[Sample | Reject]:
    """Yield one `Sample` or `Reject` per non-empty line of a JSONL file, in file order.

    `root` is joined to relative media paths. Raises FileNotFoundError where the file itself is missing.
    """
    path = Path(path)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
                yield parse_record(record, dataset=dataset, where=where, root=root)
            except json.JSONDecodeError as error:
                yield Reject(dataset, where, f"the line is not JSON ({error.msg} at column {error.colno})")
            except SampleError as error:
                yield Reject(dataset, where, error.reason)


def parse_record(record: Any, *, dataset: str, where: str, root: str | Path = "") -> Sample:
    """One decoded JSON record to a `Sample`; raises SampleError that says what is wrong and how to mend it."""
    if not isinstance(record, Mapping):
        raise SampleError(where, f"a record must be a JSON object, not {type(record).__name__}")
    messages = _messages(record.get("conversations"), where)
    images, videos = _media(record, where, Path(root))
    messages = number_placeholders(messages, images=len(images), videos=len(videos), where=where)
    return Sample(dataset, where, messages, tuple(images), tuple(videos))


def _messages(conversations: Any, where: str) -> list[Message]:
    if not isinstance(conversations, list) or not conversations:
        raise SampleError(where, 'the conversation is empty; "conversations" must be a list of {"from", "value"} turns')
    messages = []
    for number, turn in enumerate(conversations, 1):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise SampleError(where, f'turn {number} must be an object with the strings "from" and "value"')
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise SampleError(where, f"turn {number} is from {turn.get('from')!r}; use one of {', '.join(_ROLES)}")
        if role == "system" and number > 1:
            raise SampleError(where, f"turn {number} is a system turn; only the first turn can be one")
        messages.append(Message(role, turn["value"]))
    if not any(message.role == "assistant" and message.text.strip() for message in messages):
        raise SampleError(where, "the conversation has no answer to learn from (no non-empty gpt turn)")
    return messages


def _media(record: Mapping[str, Any], where: str, root: Path) -> tuple[list[ImageRef], list[VideoRef]]:
    images: list[ImageRef] = []
    videos: list[VideoRef] = []
    for item in _as_list(record.get("image")):
        images.append(_image(item, where, root))
    for item in _as_list(record.get("video")):
        videos.append(_video(item, where, root))
    data = record.get("data", [])
    if not isinstance(data, list):
        raise SampleError(where, '"data" must be a list of {"type": "image", "image_list": […]} or {"type": "video", "video_list": […]}')
    if data and (images or videos):
        raise SampleError(where, 'the record has both "data" and "image"/"video"; use one form')
    for entry in data:
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        if kind == "image":
            images += [_image(item, where, root) for item in _as_list(entry.get("image_list"))]
        elif kind == "video":
            videos += [_video(item, where, root) for item in _as_list(entry.get("video_list"))]
        elif kind != "text":
            raise SampleError(where, f'an entry of "data" has type {kind!r}; use "image" or "video"')
    return images, videos


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _join(root: Path, path: Any, where: str) -> str:
    if not isinstance(path, str) or not path:
        raise SampleError(where, f"a media path must be a non-empty string, not {path!r}")
    return str(root / path)


def _image(item: Any, where: str, root: Path) -> ImageRef:
    if isinstance(item, Mapping):
        if "lmdb_file" in item and "lmdb_key" in item:
            return ImageRef(_join(root, item["lmdb_file"], where), str(item["lmdb_key"]))
        item = item.get("image", item.get("path"))
        if item is None:
            raise SampleError(where, "an image object needs lmdb_file and lmdb_key, or image or path")
    return ImageRef(_join(root, item, where))


def _video(item: Any, where: str, root: Path) -> VideoRef:
    if not isinstance(item, Mapping):
        return VideoRef(_join(root, item, where))
    path = item.get("video", item.get("path"))
    if path is None:
        raise SampleError(where, "a video object needs video (or path), with start_time and end_time for a clip")
    start = _seconds(item, ("start_time", "start"), where)
    end = _seconds(item, ("end_time", "end"), where)
    if start is not None and end is not None and end <= start:
        raise SampleError(where, f"the clip ends at {end:g} s, not after its start at {start:g} s")
    return VideoRef(_join(root, path, where), start, end)


def _seconds(item: Mapping[str, Any], keys: tuple[str, ...], where: str) -> float | None:
    for key in keys:
        value = item.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise SampleError(where, f"{key} must be seconds (a number >= 0), not {value!r}")
        return float(value)
    return None
