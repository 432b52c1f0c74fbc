"""Text to token ids with the `tokenizers` library, exactly as a ChatML prompt of Eagle 2.5 is tokenised.

Special tokens are placed by the code that renders the prompt. A text that merely looks like one (a web page with a
literal `<img>`) is encoded as plain text, so a sample cannot forge a picture or end a turn; only the grounding
markers (`<box>` …) are special in texts. No torch, no transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path

from tokenizers import Tokenizer

from eagle_data.chat import Segment
from eagle_data.special_tokens import CHAT_TOKENS, GROUNDING_TOKENS, IMG_CONTEXT, SPECIAL_TOKENS

_WRAPPER_CHARACTERS = 64
_WRAPPERS_KEPT = 1 << 13
"""Short questions and answers fill this memory too, half a kilobyte each, so it grows with the samples until it is full."""


class PromptTokenizer:
    """A `tokenizers.Tokenizer` with Eagle's special tokens known by name.

    Attributes:
        special: id of each special token by name.
        vocab_size: number of tokens, added ones included.
        fingerprint: changes whenever the tokenizer would give other ids.

    Raises:
        ValueError: where the tokenizer lacks a token that prompts need; grounding tokens may be missing and are then
            plain text.
    """

    def __init__(self, tokenizer: Tokenizer):
        plain = _without_special_tokens(tokenizer)
        self._begin(plain, plain.to_str())

    def _begin(self, plain: Tokenizer, text: str) -> None:
        """Start with a tokenizer for plain texts, which is `text` as JSON."""
        ids = {name: plain.token_to_id(name) for name in (*CHAT_TOKENS, *SPECIAL_TOKENS)}
        missing = [name for name, token in ids.items() if token is None and name not in GROUNDING_TOKENS]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}; add them by name before preparing data "
                "(eagle_data.special_tokens lists them)"
            )
        self.special: dict[str, int] = {name: token for name, token in ids.items() if token is not None}
        self.vocab_size = plain.get_vocab_size(with_added_tokens=True)
        self._plain = plain
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._markup = _any_of([f"(?:{re.escape(IMG_CONTEXT)})+", *map(re.escape, self.special)])
        self._grounding = _any_of(re.escape(name) for name in GROUNDING_TOKENS if name in self.special)
        # Two caches, because a plan tokenises one sample's prompt many times: wrappers ("Frame 7 sample at 3.03s: ")
        # recur in other samples and are tiny, a conversation's own texts do neither.
        self._wrapper_ids = lru_cache(maxsize=_WRAPPERS_KEPT)(self._plain_ids)
        self._text_ids = lru_cache(maxsize=64)(self._plain_ids)

    @classmethod
    def from_folder(cls, folder: str | Path) -> PromptTokenizer:
        """Read `tokenizer.json` of a checkpoint folder."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; save the tokenizer in its fast form "
                f"(AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(…) writes it)"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer that the tokenizers library reads ({error}); save it again") from error
        return cls(tokenizer)

    @classmethod
    def from_text(cls, text: str) -> PromptTokenizer:
        """The tokenizer that `to_text` wrote, here or in another process; it has the same fingerprint."""
        self = cls.__new__(cls)
        self._begin(_for_texts(text), text)  # parsed once: a vocabulary of 150,000 takes a quarter of a second each time
        return self

    def to_text(self) -> str:
        """All that decides ids, as the JSON of the tokenizers library."""
        return self._plain.to_str()

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain text, in which only the grounding markers are special tokens."""
        ids: list[int] = []
        for piece in self._grounding.split(text):
            if piece in self.special and piece in GROUNDING_TOKENS:
                ids.append(self.special[piece])
            elif piece:
                ids.extend(self._wrapper_ids(piece) if len(piece) <= _WRAPPER_CHARACTERS else self._text_ids(piece))
        return ids

    def pieces(self, text: str) -> list[str] | None:
        """The stretches of a plain ASCII `text` that are tokenised each on its own; None where the tokenizer does not cut, or
        rewrites the text first."""
        backend = self._plain
        if backend.pre_tokenizer is None or (backend.normalizer is not None and backend.normalizer.normalize_str(text) != text):
            return None
        return [text[first:last] for _, (first, last) in backend.pre_tokenizer.pre_tokenize_str(text)]

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        """Token ids of a rendered prompt and, for each id, whether it is supervised.

        Neighbouring texts are joined before they are tokenised, since a tokenizer may merge over the seam; special tokens and
        the borders of answers and of supervision are the only cuts. For texts without forged special tokens the result equals
        tokenising the joined prompt with a cut before each answer.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        text, flag, answer = "", False, False

        def flush() -> None:
            nonlocal text
            if text:
                new = self.encode_text(text)
                ids.extend(new)
                supervised.extend([flag] * len(new))
                text = ""

        for segment in segments:
            if (segment.supervised, segment.answer) != (flag, answer):
                flush()
                flag, answer = segment.supervised, segment.answer
            if not segment.markup:
                text += segment.text
                continue
            for piece in self._markup.split(segment.text):
                if piece.startswith(IMG_CONTEXT):  # a run of them: all but a few of a long prompt's tokens
                    flush()
                    run = len(piece) // len(IMG_CONTEXT)
                    ids.extend(repeat(self.special[IMG_CONTEXT], run))
                    supervised.extend(repeat(flag, run))
                elif piece in self.special:
                    flush()
                    ids.append(self.special[piece])
                    supervised.append(flag)
                else:
                    text += piece
        flush()
        return ids, supervised

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)


def _without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads every special token in a text as plain text, also those that were added as ordinary tokens."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in (*CHAT_TOKENS, *SPECIAL_TOKENS)
    return _for_texts(json.dumps(content))


def _for_texts(text: str) -> Tokenizer:
    plain = Tokenizer.from_str(text)
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """One group of alternatives; without any, a pattern that is nowhere."""
    return re.compile(f"({'|'.join(patterns) or '(?!)'})")
