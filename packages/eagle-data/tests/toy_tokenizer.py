"""A small tokenizer built as Qwen2's is: NFC, its splitting rule (single digits), byte-level BPE, special tokens by name."""

from __future__ import annotations

from collections.abc import Sequence

from eagle_data.special_tokens import CHAT_TOKENS, SPECIAL_TOKENS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = (
    "system user assistant observation You are a helpful assistant.",
    "The first video sampled with 2.00 fps: Frame 1 sample at 0.53s: Frame 2 sample at 1.03s: ",
    "The second video of 10.00 seconds at 2.40 fps: Frame 3: <image 1><image 2>",
    "What is shown at 3.5 seconds?\n\nDescribe it. The picture shows a small red house.\nWhich digit is this?",
)


def train_tokenizer(special: Sequence[str] = (*CHAT_TOKENS, *SPECIAL_TOKENS)) -> Tokenizer:
    """A trained tokenizer of about 400 entries with the tokens `special` added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, min_frequency=2, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer
