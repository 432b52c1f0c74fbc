"""What tests share: a real byte-level BPE, trained here in a fraction of a second, and a web server of a test's own `folder`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from eagle_data.tokens import PromptTokenizer
from tokenizers import Tokenizer

from .toy_tokenizer import train_tokenizer
from .web_server import Ranges, served


@pytest.fixture(scope="session")
def raw_tokenizer() -> Tokenizer:
    """The tokenizer as the library has it, with its special tokens special."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer(raw_tokenizer: Tokenizer) -> PromptTokenizer:
    """The same tokenizer as eagle-data uses it."""
    return PromptTokenizer(raw_tokenizer)


@pytest.fixture
def asked() -> list[str]:
    """The paths that the server `ranges` was asked for."""
    return []


@pytest.fixture
def ranges(folder: Path, asked: list[str]) -> Iterator[str]:
    """The address of a server that answers ranges of the files in the test's fixture `folder`."""
    yield from served(partial(Ranges, folder, asked))
