"""Text to token ids with the `tokenizers` library, exactly as a ChatML prompt of Eagle 2.5 is tokenised.

Special tokens are placed by the code that renders the prompt. A text that merely looks like one (a web page with a
literal `<img>`) is encoded as plain text, so a sample cannot forge a picture or end a turn; only the grounding
markers (`<box>` …) are special in texts. No torch, no transformers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from eagle_data.chat import Segment
from eagle_data.special_tokens import CHAT_TOKENS, GROUNDING_TOKENS, SPECIAL_TOKENS

_GROUNDING = re.compile("(" + "|".join(re.escape(token) for token in GROUNDING_TOKENS) + ")")


class PromptTokenizer:
    """A `tokenizers.Tokenizer` with Eagle's special tokens known by name.

    `special[name]` is the id of a special token. Raises ValueError where the tokenizer lacks a token that prompts
    need; grounding tokens may be missing and are then plain text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        names = (*CHAT_TOKENS, *SPECIAL_TOKENS)
        ids = {name: tokenizer.token_to_id(name) for name in names}
        missing = [name for name, token in ids.items() if token is None and name not in GROUNDING_TOKENS]
        if missing:
            raise ValueError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}; add them by name before preparing data "
                "(eagle_data.special_tokens lists them)"
            )
        self.special: dict[str, int] = {name: token for name, token in ids.items() if token is not None}
        self._markup = re.compile("(" + "|".join(re.escape(name) for name in self.special) + ")")
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        self._encode_cached = lru_cache(maxsize=65536)(self._encode_plain)

    @classmethod
    def from_folder(cls, folder: str | Path) -> PromptTokenizer:
        """Read `tokenizer.json` of a checkpoint folder."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; save the tokenizer in its fast form "
                f"(AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(…) writes it)"
            )
        return cls(Tokenizer.from_file(str(path)))

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a plain text, in which only the grounding markers are special tokens."""
        ids: list[int] = []
        for piece in _GROUNDING.split(text):
            if piece in self.special:
                ids.append(self.special[piece])
            elif piece:
                ids.extend(self._encode_cached(piece))
        return ids

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        """Token ids of a rendered prompt and, for each id, whether it is supervised.

        Neighbouring texts of equal supervision are joined before they are tokenised, since a tokenizer may merge over
        the seam; special tokens and a change of supervision are the only cuts. For texts without forged special
        tokens the result equals tokenising the joined prompt, turn by turn.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        text, flag = "", False

        def flush() -> None:
            nonlocal text
            if text:
                new = self.encode_text(text)
                ids.extend(new)
                supervised.extend([flag] * len(new))
                text = ""

        for segment in segments:
            if segment.supervised != flag:
                flush()
                flag = segment.supervised
            if not segment.markup:
                text += segment.text
                continue
            for piece in self._markup.split(segment.text):
                if piece in self.special:
                    flush()
                    ids.append(self.special[piece])
                    supervised.append(flag)
                else:
                    text += piece
        flush()
        return ids, supervised
