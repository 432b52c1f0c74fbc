"""What the pages of documents cost in tokens without tokenising a document once for every number of pages, and which are shown.

What stands between the context tokens of two pages is tokenised apart from all else, and differs by the second page's number
alone (`Dialect.image`): sums over numbers hold for any tokenizer. Knows nothing of sizes, tiles or budgets.
"""

from __future__ import annotations

from functools import lru_cache

from eagle_data.chat import Segment
from eagle_data.dialect import Dialect
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer


class PageTable:
    """Sums over the numbers of pages, found by tokenising each number once and kept."""

    def __init__(self, tokenizer: PromptTokenizer, dialect: Dialect):
        self._tokenizer, self._dialect = tokenizer, dialect
        self._sums: tuple[int, ...] = (0, 0)

    def later(self, numbers: range) -> int:
        """Tokens of pages one behind the other, which are images number `numbers`; without the first page and context tokens."""
        if len(numbers) < 2:
            return 0
        sums = self._sums
        if numbers[-1] >= len(sums):
            sums = self._sums = self._longer(sums, numbers[-1])
        return sums[numbers[-1]] - sums[numbers[0]]

    def _longer(self, sums: tuple[int, ...], last: int) -> tuple[int, ...]:
        longer = list(sums)
        for number in range(len(sums), max(last + 1, 2 * len(sums))):
            before, own = (Segment(self._dialect.image(n, 1, 2), markup=True) for n in (number - 1, number))
            added = len(self._tokenizer.encode([before, own])[0]) - len(self._tokenizer.encode([before])[0])
            longer.append(longer[-1] + added - 1)
        return tuple(longer)


@lru_cache(maxsize=16)
def page_table(tokenizer: PromptTokenizer, dialect: Dialect) -> PageTable:
    """The table of a tokenizer and dialect; it grows with the largest number asked for."""
    return PageTable(tokenizer, dialect)


@lru_cache(maxsize=1 << 12)
def pages_shown(total: int, n: int) -> tuple[int, ...]:
    """Indices of the `n` pages shown of `total`: spread as frames of a video are."""
    return uniform(total, 1.0, n).indices
