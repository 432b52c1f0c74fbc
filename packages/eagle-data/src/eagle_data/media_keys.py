"""Media that a record names where nothing reads them: under another key, in a turn, or inside its text.

Promises that such a record is told from one with metadata, so that it is refused and not learned as text. Two rules on keys, both
read from the name itself, so that no list of projects has to be kept:

- The last word that says more than "path of" or "list of" is a medium (`image_path`, `videoFile`, `left_image`, `audios`):
  always. `image_size`, `video_id` and `audio_transcript` end in another word and are metadata, as counts and flags are.
- The key says only that it is a file (`file`, `url`, `frames`): where its value is named like a medium and the record has none.

Not for where media are read (`annotations`, `record_forms`), nor for whether a file is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from eagle_data.errors import SampleError
from eagle_data.placeholders import MISMATCH

UNREAD = "unread media"
READ = ("image", "images", "video", "videos", "document", "documents", "data")

_KINDS = {
    **dict.fromkeys(("image", "img", "picture", "photo", "pic", "screenshot", "jpg", "jpeg", "png", "webp", "gif"), "image"),
    **dict.fromkeys(("video", "vid", "mp4", "webm", "mkv", "avi", "mov"), "video"),
    **dict.fromkeys(("audio", "speech", "sound", "wav", "mp3", "flac", "ogg"), "audio"),
    **dict.fromkeys(("media", "multimedia", "attachment"), "media"),
    **dict.fromkeys(("frame", "page", "clip", "movie", "doc"), "file"),
    **dict.fromkeys(("document", "pdf"), "document"),
}
"""The medium that a word of a key means; plurals mean the same. "media" and "file" say nothing of the kind."""
_ABOUT = {
    *("path", "file", "filename", "filepath", "name", "url", "uri", "link", "src", "list", "folder", "dir"),
    *("bytes", "base64", "b64", "binary"),
}
"""Words that say how a medium is given, not what it is."""
_WORD = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*(?![a-z])")
_MEDIUM = re.compile(
    r"(?i)(?:^data:(?:image|video|audio|application/pdf)|\.(?:parquet|arrow)::[^:]+::[0-9]+(?:::[0-9]+)?$|"
    r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|mp4|webm|mkv|avi|mov|m4v|mpe?g|wav|mp3|flac|ogg|m4a|opus|pdf)(?:[?#][^\s]*)?$)"
)
"""How a value is named that holds media: a data URL, a cell of bytes, or a file by its ending."""
# As data for sound and for documents write them: first in a turn, or alone on a line. Inside a sentence they are words.
_MARK = re.compile(r"(?m)\A\s*<(audio|speech|sound|document)>|^[ \t]*<(audio|speech|sound|document)>[ \t]*$")
_INLINE = re.compile(r"<(img|image|audio|video)>\s*([^<>\s]+)\s*</\1>", re.IGNORECASE)
_BOX = re.compile(r"<(?:ref-object|bbox[0-9]*)>")
_BOXES = ("objects", "bbox", "bboxes")


def names_media(key: str) -> bool:
    """Whether a column of encoded bytes with this name holds media: it says which, or no more than that it is a file."""
    return _kind(_words(key)) is not None


def refuse_unread_keys(record: Mapping[str, Any], *, read: Iterable[str], where: str) -> None:
    """Raise SampleError (kind `UNREAD`) for a key of `record` that names media which are not read, with the key to use.

    `read` are the paths of the media that were read: `image_path` and the like may name one of them once more.
    """
    paths = tuple(read)
    for key, value in record.items():
        if key in READ or not isinstance(key, str) or not _is_reference(value):
            continue
        words = _words(key)
        kind = _kind(words)
        if kind is None or (kind == "file" and paths):
            continue
        # "document" is also a text that was retrieved, "url" may be any page: only the value tells.
        if (kind in ("file", "media") or (kind == "document" and "pdf" not in words)) and not _looks_like_media(value):
            continue
        if words[0] in _KINDS and _repeats(value, paths):
            continue
        raise SampleError(where, f'"{key}" names media but is not read; {_mend(kind)}', UNREAD)


def refuse_turn_media(turn: Mapping[str, Any], number: int, where: str) -> None:
    """Raise SampleError for media that stand inside a turn: only the record's own are read."""
    for key, value in turn.items():
        if isinstance(key, str) and _kind(_words(key)) in ("image", "video", "audio", "document") and _is_reference(value):
            raise SampleError(
                where, f'turn {number} has media under "{key}"; list them in the record, under "images" or "videos"', UNREAD
            )


def refuse_unread_marks(texts: Iterable[str], record: Mapping[str, Any], *, documents: int, where: str) -> None:
    """Raise SampleError where a text mentions media that are not attached, in a way that only a dataset's placeholder has.

    `texts` are those of the turns but the assistant's. `<document>` and `<audio>` are also words of markup: they mean a medium
    at the start of a turn or alone on a line, where no end tag follows. A path between `<img>` and `</img>` is one everywhere.
    """
    boxes = [name for name in _BOXES if record.get(name)]
    for text in texts:
        for found in _MARK.finditer(text):
            name = found[1] or found[2]
            if f"</{name}>" not in text and not (name == "document" and documents):
                mend = 'name it under "document"' if name == "document" else "sound is not read"
                raise SampleError(
                    where, f"the text mentions <{name}> but none is attached; {mend}, or remove the placeholder", MISMATCH
                )
        inline = next((found for found in _INLINE.finditer(text) if _looks_like_media(found[2])), None)
        if inline is not None:
            raise SampleError(
                where,
                f'{inline[0][:80]!r} names a file inside the text; write <image> there and the path under "images" '
                '(<video> and "videos")',
                UNREAD,
            )
    if boxes:
        answers = (turn.get("value") for turn in record.get("conversations") or () if isinstance(turn, Mapping))
        for text in (*texts, *(answer for answer in answers if isinstance(answer, str))):
            if _BOX.search(text):
                raise SampleError(
                    where, f'the text has boxes that stand under "{boxes[0]}"; write them into the text as they shall be learned'
                )


def _mend(kind: str) -> str:
    if kind == "audio":
        return "sound is not read, so remove the key and what the text says of it, or leave the record out"
    keys = f'"{kind}" or "{kind}s"' if kind in ("image", "video", "document") else '"image", "video" or "document"'
    return f"write {keys} instead, or remove the key where it is no part of the sample"


def _words(key: str) -> list[str]:
    """The words of a key in small letters and the singular, without numbers: `videoFiles_2` gives video, file."""
    words: list[str] = []
    for found in _WORD.findall(key):
        word = _known(found.lower())
        start = next((name for name in _KINDS if word.startswith(name) and _known(word[len(name) :]) in _ABOUT), None)
        words.extend([word] if start is None else [start, _known(word[len(start) :])])  # "imagepath" is two words
    return words


def _known(word: str) -> str:
    """The word as the tables have it, where they have it without its number or its plural."""
    for form in (word, word.rstrip("0123456789"), word.rstrip("0123456789").removesuffix("s")):
        if form in _KINDS or form in _ABOUT:
            return form
    return word


def _kind(words: list[str]) -> str | None:
    named = [word for i, word in enumerate(words) if any(later not in _ABOUT for later in words[i:])]
    if not named:
        return "file" if words else None
    return _KINDS.get(named[-1])


def _is_reference(value: Any) -> bool:
    """Whether a value can name media: a text, an object, or a list of anything. Counts and flags cannot."""
    if isinstance(value, str):
        return bool(value.strip())
    return bool(value) and isinstance(value, (Mapping, list, tuple, bytes))


def _looks_like_media(value: Any) -> bool:
    """Whether a text in `value` is named like a file of media, or holds one as a data URL."""
    if isinstance(value, str):
        return _MEDIUM.search(value.strip()) is not None
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(_looks_like_media(item) for item in value)


def _repeats(value: Any, paths: tuple[str, ...]) -> bool:
    """Whether a value only names media that were read: with more or with less of their path."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(item, str) and any(_same_end(item, path) for path in paths) for item in values)


def _same_end(one: str, other: str) -> bool:
    short, long = sorted((re.split(r"[/\\]", one.strip()), re.split(r"[/\\]", other)), key=len)
    return long[-len(short) :] == short
