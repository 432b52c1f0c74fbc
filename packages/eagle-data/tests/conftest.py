"""The tokenizer that the tests of prompts share: a real byte-level BPE, trained here in a fraction of a second."""

from __future__ import annotations

import pytest
from eagle_data.tokens import PromptTokenizer
from tokenizers import Tokenizer

from .toy_tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def raw_tokenizer() -> Tokenizer:
    """The tokenizer as the library has it, with its special tokens special."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer(raw_tokenizer: Tokenizer) -> PromptTokenizer:
    """The same tokenizer as eagle-data uses it."""
    return PromptTokenizer(raw_tokenizer)
