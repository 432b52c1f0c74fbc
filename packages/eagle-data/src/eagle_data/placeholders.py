"""Placeholders of media in conversations: `<image>`, `<image-2>`, `<video>`, `<video-1>`, `<document>`, `<document-1>`.

`number_placeholders` turns every accepted spelling into the numbered one and checks that text and media agree, so
nothing later has to guess (upstream section 3.2). `split_placeholders` cuts a numbered text into its parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eagle_data.errors import SampleError
from eagle_data.samples import Message, Sample

# ASCII digits, and no more than a conversation can count: `\d` and int() would also take other scripts and 5000 digits.
_NUMBERED = re.compile(r"<(image|video|document)-([0-9]{1,9})>")
_ANY = re.compile(r"<(image|video|document)(?:-([0-9]{1,9}))?>\n?")

MISMATCH = "placeholder mismatch"


def split_placeholders(text: str) -> list[str | tuple[str, int]]:
    """Cut `text` into strings and `(kind, number)` pairs, in order; empty strings are left out."""
    parts: list[str | tuple[str, int]] = []
    end = 0
    for match in _NUMBERED.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        parts.append((match[1], int(match[2])))
        end = match.end()
    if end < len(text):
        parts.append(text[end:])
    return parts


def number_placeholders(
    messages: Sequence[Message], *, images: int, videos: int, documents: int = 0, where: str
) -> tuple[Message, ...]:
    """Number the placeholders of all turns but the assistant's, and add those of media no turn mentions.

    - `<image>` without a number takes the next number of its kind; one newline after it is dropped, as upstream does.
    - A kind that no turn mentions is put before the first user turn, in order.
    - An assistant turn is text: placeholders in it stay as they are written.

    Raises SampleError where the mentioned numbers are not exactly 1..n, each once, spellings are mixed, or only an answer
    mentions the media: the release would show them there, and nothing can be shown inside what is learned.
    """
    counts = {"image": images, "video": videos, "document": documents}
    mentioned: dict[str, list[int]] = {kind: [] for kind in counts}
    spellings: dict[str, set[bool]] = {kind: set() for kind in counts}

    def number(match: re.Match[str]) -> str:
        kind, digits = match[1], match[2]
        if kind == "document" and digits is None and not documents:
            return match[0]  # a word that texts use; only a sample with documents means one by it
        spellings[kind].add(digits is not None)
        k = int(digits) if digits else len(mentioned[kind]) + 1
        mentioned[kind].append(k)
        newline = "\n" if digits and match[0].endswith("\n") else ""
        return f"<{kind}-{k}>{newline}"

    numbered = [
        message if message.role == "assistant" else Message(message.role, _ANY.sub(number, message.text)) for message in messages
    ]
    prefix = ""
    for kind, count in counts.items():
        seen = mentioned[kind]
        if len(spellings[kind]) > 1:
            raise SampleError(where, f"both <{kind}> and numbered <{kind}-k> placeholders are used; use one spelling", MISMATCH)
        if not seen:
            if count:
                _refuse_shown_in_answers(messages, kind, where)
            prefix += "".join(f"<{kind}-{k}>" for k in range(1, count + 1))
        elif sorted(seen) != list(range(1, count + 1)):
            raise _disagreement(kind, seen, count, where, mend=f"mention each of 1..{count} exactly once, or none")
    if prefix:
        for i, message in enumerate(numbered):
            if message.role == "user":
                numbered[i] = Message("user", prefix + message.text)
                break
        else:
            raise SampleError(where, "media are attached but there is no human turn to show them in; add one", MISMATCH)
    return tuple(numbered)


def check_placeholders(sample: Sample) -> None:
    """Raise SampleError where the numbered placeholders of all turns but the assistant's are not the sample's media, each once.

    What `number_placeholders` has numbered always passes; this is for samples made by hand.
    """
    counts = {"image": len(sample.images), "video": len(sample.videos), "document": len(sample.documents)}
    mentioned: dict[str, list[int]] = {kind: [] for kind in counts}
    for message in sample.messages:
        if message.role != "assistant":
            for kind, digits in _NUMBERED.findall(message.text):
                mentioned[kind].append(int(digits))
    for kind, count in counts.items():
        if len(mentioned[kind]) != count or sorted(mentioned[kind]) != list(range(1, count + 1)):
            raise _disagreement(kind, mentioned[kind], count, sample.where, mend=f"mention each of 1..{count} exactly once")


def _disagreement(kind: str, mentioned: Sequence[int], count: int, where: str, *, mend: str) -> SampleError:
    listed = ", ".join(f"<{kind}-{k}>" for k in mentioned[:8]) + (", …" if len(mentioned) > 8 else "")
    return SampleError(
        where,
        f"the text mentions {len(mentioned)} {kind} placeholder(s){f' ({listed})' if listed else ''} but {count} {kind}(s) are "
        f"attached; {mend if count else 'attach them, or remove the placeholders'}",
        MISMATCH,
    )


def _refuse_shown_in_answers(messages: Sequence[Message], kind: str, where: str) -> None:
    for i, message in enumerate(messages, 1):
        if message.role == "assistant" and any(match[1] == kind for match in _ANY.finditer(message.text)):
            raise SampleError(
                where,
                f"only the answer in turn {i} mentions the attached {kind}s; mention them in a human turn, where they are shown",
                MISMATCH,
            )
