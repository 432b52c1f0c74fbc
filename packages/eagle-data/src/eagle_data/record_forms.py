"""Records of other projects in Eagle's form: LLaVA, ShareGPT, OpenAI messages, rows of the public release's prepared parquet.

`to_eagle` is pure: a decoded record in, a record with `conversations` and media out, as `annotations.parse_record` reads it.
What is already in Eagle's form passes through. What has no counterpart (tools, ids, scores) is left out; what would change the
conversation (a turn without text, an unknown part, a call of a tool) is refused by name, here or there. Questions and answers in
pairs are `pair_forms`, media under names that nothing reads `media_keys`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from eagle_data.dialect import ordinal
from eagle_data.errors import SampleError
from eagle_data.media_keys import refuse_turn_media
from eagle_data.pair_forms import turns_of_pairs
from eagle_data.placeholders import MISMATCH

_ROLES = {
    **dict.fromkeys(("chatgpt", "bing", "bard", "model", "function_call"), "gpt"),
    **dict.fromkeys(("tool", "function", "function_response", "ipython"), "observation"),
    "developer": "system",
}
"""Names of speakers beyond Eagle's own, by the one that they mean."""
_KINDS = ("image", "video", "document")
_JSON_COLUMNS = (
    *("conversations", "conversation", "messages", "texts", "history", "data"),
    *_KINDS,
    *(f"{kind}s" for kind in _KINDS),
)
RANGES = {"video": ("start_time", "start", "end_time", "end"), "document": ("pages",)}
"""Keys beside a medium that say which part of it is shown; `to_eagle` leaves none where there is one medium to put them into."""
_LEARNED = ("weight", "loss", "train")
"""Keys by which a turn says whether it is learned: OpenAI's 0 and 1, other projects' true and false."""
_CALLS = ("tool_calls", "function_call")
_PREPARED = ("unified_frame_list", "num_all_tiles")
_FRAME = r"<frame-[0-9]+>"
# What the release's preparation writes around frames (section 2 of its facts): video first, since it is made of frames.
_ORDINALS = {ordinal(k): k for k in range(1, 11)}
_PREPARED_VIDEO = re.compile(
    rf"The ({'|'.join(_ORDINALS)}|[0-9]+)(?:st|nd|rd|th)? video(?: of [0-9.]+ seconds at [0-9.]+ fps)?: "
    rf"(?:Frame [0-9]+: ?{_FRAME}\n?)+"
)
_PREPARED_IMAGE = re.compile(rf"(?:<image ([0-9]+)>)?{_FRAME}\n?")


def to_eagle(record: Any, where: str) -> Any:
    """The record in Eagle's form; anything that is no object is given back for `parse_record` to refuse.

    Raises SampleError for two forms in one record, a part of a message that is not known, or media named twice.
    """
    if not isinstance(record, Mapping):
        return record
    record = {key: _parsed(value) if key in _JSON_COLUMNS else value for key, value in record.items()}
    if all(key in record for key in _PREPARED):
        return _from_prepared(record, where)
    record = _with_ranges(_plural_keys(record, where), where)
    if "messages" in record:
        if record.get("conversations"):
            raise SampleError(where, 'the record has both "conversations" and "messages"; use one form')
        record["conversations"] = record.pop("messages")
        if not isinstance(record["conversations"], list):
            raise SampleError(where, '"messages" must be a list of {"role", "content"} turns', "empty conversation")
    elif not record.get("conversations"):
        pairs = turns_of_pairs(record, where)
        record = record if pairs is None else {**record, "conversations": pairs}
    unliked = next((key for key in ("kto_tag", "label") if record.get(key) is False), None)
    if unliked is not None:
        raise SampleError(where, f'"{unliked}" is false, which marks an answer that is not to be learned; leave the record out')
    if record.get("chosen") is not None and record.get("rejected") is not None:
        raise SampleError(
            where, 'the record has a chosen and a rejected answer; write the chosen one as the last turn, without "rejected"'
        )
    conversations = record.get("conversations")
    if isinstance(conversations, list):
        record = _with_parts(record, conversations, where)
        turns = [_turn(turn, number, where) for number, turn in enumerate(record["conversations"], 1)]
        system = record.get("system")
        if isinstance(system, str) and system.strip() and not (turns and _speaker(turns[0]) == "system"):
            turns.insert(0, {"from": "system", "value": system})
        record["conversations"] = _video_marks(turns, record)
    return record


def _parsed(value: Any) -> Any:
    """A JSON list or object that a parquet column holds as text; any other value unchanged."""
    if isinstance(value, str) and value[:1] in "[{" and value:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _plural_keys(record: dict[str, Any], where: str) -> dict[str, Any]:
    """`images`, `videos` and `documents`, as ShareGPT's users write them, under the names of one."""
    for kind in _KINDS:
        listed = record.pop(f"{kind}s", None)
        if not listed:
            continue
        if record.get(kind):
            raise SampleError(where, f'the record has both "{kind}" and "{kind}s"; use one', "bad media reference")
        record[kind] = listed
    return {key: value for key, value in record.items() if key not in _KINDS or value not in (None, [])}


def _with_ranges(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Times beside the one video, or pages beside the one document, put into it: `{"video": "v.mp4", "start": 2, "end": 5}`."""
    for kind, keys in RANGES.items():
        given = {key: record.pop(key) for key in keys if record.get(kind) and record.get(key) is not None}
        if not given:
            continue
        item = record[kind][0] if isinstance(record[kind], list) and len(record[kind]) == 1 else record[kind]
        if not isinstance(item, str):
            listed = ", ".join(f'"{key}"' for key in given)
            raise SampleError(
                where,
                f"{listed} beside several {kind}s, or beside an object: it is not clear what is meant; "
                f"write an object for each {kind}, with its own",
                "bad media reference",
            )
        record[kind] = {kind: item, **given}
    return record


def _speaker(turn: Any) -> Any:
    return turn.get("from") if isinstance(turn, Mapping) else None


def _turn(turn: Any, number: int, where: str) -> Any:
    """A turn with Eagle's keys and names; `role` and `content` are read too where `from` and `value` are missing."""
    if not isinstance(turn, Mapping):
        return turn
    refuse_turn_media(turn, number, where)
    call = next((key for key in _CALLS if turn.get(key)), None)
    if call is not None:
        raise SampleError(where, f'turn {number} has "{call}", which is not read; write the call as text of the turn', "bad turn")
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    speaker = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    learned = _is_learned(turn, number, where) if speaker in ("gpt", "assistant") else True
    return {"from": speaker, "value": value, "learned": learned}


def _is_learned(turn: Mapping[str, Any], number: int, where: str) -> bool:
    """What an answer says of itself; of turns that are no answers nothing is learned in any case."""
    given = {key: turn[key] for key in _LEARNED if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise SampleError(
                where,
                f'turn {number} has "{key}": {value!r}; write 1 for an answer to learn and 0 for one to read only',
                "bad turn",
            )
    if len({bool(value) for value in given.values()}) > 1:
        raise SampleError(
            where, f"turn {number} says by {', '.join(given)} that it is learned and that it is not; use one", "bad turn"
        )
    return all(given.values())


def _video_marks(turns: list[Any], record: Mapping[str, Any]) -> list[Any]:
    """LLaVA's video sets write `<image>` for a video: so it is read where there are videos, no images, and no `<video>`."""
    texts = [turn["value"] for turn in turns if isinstance(turn, Mapping) and isinstance(turn.get("value"), str)]
    if not record.get("video") or record.get("image") or record.get("data") or any("<video" in text for text in texts):
        return turns
    return [
        {**turn, "value": turn["value"].replace("<image>", "<video>")}
        if isinstance(turn, Mapping) and isinstance(turn.get("value"), str) and turn.get("from") not in ("gpt", "assistant")
        else turn
        for turn in turns
    ]


def _with_parts(record: dict[str, Any], messages: list[Any], where: str) -> dict[str, Any]:
    """Messages with lists of parts as text; a part without an address takes the next of the record's media of its kind."""
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    waiting = {kind: _as_list(record.get(kind)) for kind in _KINDS}
    turns = []
    for number, message in enumerate(messages, 1):
        key = next(
            (key for key in ("value", "content") if isinstance(message, Mapping) and isinstance(message.get(key), list)), None
        )
        if key is not None:
            parts = [_part(part, number, found, waiting, where) for part in message[key]]
            message = {**message, key: "".join(parts)}
        turns.append(message)
    record = {**record, "conversations": turns}
    if any(found.values()):
        if any(waiting.values()):
            raise SampleError(where, "more media are listed than the messages have parts for; drop or add some", MISMATCH)
        if record.get("data"):
            raise SampleError(where, 'the record has both "data" and media in its messages; use one form', "bad media reference")
        record = {key: value for key, value in record.items() if key not in _KINDS}
        record["data"] = [{"type": kind, f"{kind}_list": items} for kind, items in found.items() if items]
    return record


def _part(part: Any, number: int, found: dict[str, list[Any]], waiting: dict[str, list[Any]], where: str) -> str:
    """The text of one part, with a numbered placeholder for a medium."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    name = {"image_url": "image", "input_image": "image", "video_url": "video"}.get(str(kind), str(kind))
    if name not in found:
        shown = json.dumps(part, default=str)[:80]
        raise SampleError(
            where, f"message {number} has a part that is no text, image, video or document: {shown}; leave it out", "bad turn"
        )
    medium = next((part[key] for key in (str(kind), f"{name}_url", "path") if part.get(key) is not None), None)
    if isinstance(medium, Mapping) and "url" in medium:
        medium = medium["url"]
    if medium is None and waiting.get(name):
        medium = waiting[name].pop(0)
    if name == "video" and not isinstance(medium, Mapping):
        clip = {"start_time": part.get("video_start", part.get("start")), "end_time": part.get("video_end", part.get("end"))}
        clip = {key: value for key, value in clip.items() if value is not None}
        medium = {"video": medium, **clip} if clip else medium
    if name == "document" and not isinstance(medium, Mapping):
        medium = {"document": medium, **({"pages": part["pages"]} if "pages" in part else {})}
    found[name].append(medium)
    return f"<{name}-{len(found[name])}>"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _unwrapped(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _from_prepared(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of the release's prepared parquet: its media as they were listed, its frames back to one placeholder a medium."""
    data, turns = record.get("data"), _parsed(record.get("conversations"))
    # The release wraps both lists once more.
    data, turns = _unwrapped(data), _unwrapped(turns)
    if not isinstance(turns, list) or (data is not None and not isinstance(data, list)):
        raise SampleError(where, "the prepared row has no conversations, or data that is no list; use its annotations")
    restored = []
    for turn in turns:
        if isinstance(turn, Mapping) and isinstance(turn.get("value"), str):
            text = _PREPARED_VIDEO.sub(lambda found: f"<video-{_ORDINALS.get(found[1], found[1])}>", turn["value"])
            turn = {"from": turn.get("from"), "value": _PREPARED_IMAGE.sub(lambda found: f"<image-{found[1] or 1}>", text)}
        restored.append(turn)
    return {"conversations": restored, **({"data": data} if data else {})}
