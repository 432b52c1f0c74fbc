"""Conversations to ChatML text, cut into segments that say which text is learned.

The markup is upstream section 2.1: `<|im_start|>{role}\\n{content}<|im_end|>\\n` per turn, a default system turn where
none is given. The content of a learned assistant turn and its `<|im_end|>` are supervised, nothing else (section 3.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eagle_data.placeholders import split_placeholders
from eagle_data.samples import Message
from eagle_data.special_tokens import IM_END, IM_START


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt: `text` is plain text, or markup of special tokens; `supervised` text is learned, and an `answer` that
    is not supervised is never to be."""

    text: str
    supervised: bool = False
    markup: bool = False
    answer: bool = False


def render(messages: Sequence[Message], *, default_system: str, media: Callable[[str, int], str]) -> list[Segment]:
    """Segments of a whole conversation.

    `media(kind, number)` gives the dialect's text of a numbered placeholder; it counts as markup, because it holds
    special tokens. Joined, the segments are the exact prompt. Learned content is a segment of its own: at inference
    it is generated after a prompt that ends in `assistant\\n`, so it must be tokenised apart from it.
    """
    turns = list(messages)
    if not turns or turns[0].role != "system":
        turns.insert(0, Message("system", default_system))
    segments: list[Segment] = []
    for message in turns:
        segments.append(Segment(IM_START, markup=True))
        if message.role == "assistant":
            segments.append(Segment("assistant\n"))
            segments.append(Segment(message.text, supervised=message.learned, answer=True))
            segments.append(Segment(IM_END, supervised=message.learned, markup=True, answer=True))
        else:
            segments.append(Segment(f"{message.role}\n"))
            for part in split_placeholders(message.text):
                segments.append(Segment(part) if isinstance(part, str) else Segment(media(*part), markup=True))
            segments.append(Segment(IM_END, markup=True))
        segments.append(Segment("\n"))
    return segments
