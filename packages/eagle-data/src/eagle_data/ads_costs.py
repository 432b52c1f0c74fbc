"""Exact tokens of a video shown with n frames, without tokenising it n times, and the search for the largest n that fits.

Counts what `eagle_data.sampling.uniform` would choose and `Dialect.frame` would print: with a table of frame headers a count
takes microseconds, for a tokenizer without one every frame is tokenised. Frames are placed, not decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from eagle_data.ads_headers import MOST_DIGITS, FrameTable, frame_table, frame_tokens, printing_thresholds
from eagle_data.dialect import Dialect
from eagle_data.sampling import uniform
from eagle_data.tokens import PromptTokenizer


@dataclass(frozen=True)
class VideoCost:
    """The frames of one video or clip: `total` displayed frames at `fps`, printed on a clock that begins at `start` seconds.

    `table` is None where every frame must be tokenised.
    """

    total: int
    fps: float
    start: float
    table: FrameTable | None
    tokenizer: PromptTokenizer
    dialect: Dialect
    _marks: tuple[tuple[int, int], ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        marks = []
        if self.table is not None:
            for threshold, step in zip(printing_thresholds(), self.table.time_steps, strict=False):
                if step and (mark := _first_at(threshold, self.start, self.fps)) < self.total:
                    marks.append((mark, step))
        object.__setattr__(self, "_marks", tuple(marks))

    @property
    def rises(self) -> bool:
        """True where one frame more is always dearer, context tokens left out: what later digits save is less than it costs."""
        # From n to n + 1 frames, at most one frame fewer is printed beyond each threshold; from 1 to 2 frames the first
        # frame moves from the middle to the start, which can save as much once more.
        return self.table is not None and self.table.first >= 2 * sum(step for _, step in self._marks)

    def later(self, n: int) -> int:
        """Tokens of frames 2 to `n` of `n`, their context tokens left out."""
        if n == 1:
            return 0
        if self.table is None:
            times = uniform(self.total, self.fps, n, start=self.start).timestamps
            return sum(_frame_tokens(self.tokenizer, self.dialect, i, f"{time:.2f}") for i, time in enumerate(times[1:], 2))
        tokens = self.table.total(n)
        for mark, step in self._marks:
            # The first frame is not counted here; with two frames or more it is frame 0.
            tokens += step * (n - max(1, frames_before(mark, self.total, n)))
        return tokens

    def first(self, n: int) -> tuple[float, float]:
        """The rate and the first frame's time that are printed when `n` frames are shown."""
        index = (self.total - 1) // 2 if n == 1 else 0
        return n / self.total * self.fps, self.start + index / self.fps

    def form(self, n: int) -> tuple[object, object]:
        """Equal for numbers of frames whose printed rate and first time cost the same."""
        rate, time = (f"{value:.2f}" for value in self.first(n))
        return (rate, time) if self.table is None else (len(rate), len(time))


def video_cost(
    total: int, fps: float, start: float, tokenizer: PromptTokenizer, dialect: Dialect, *, shown: int | None = None
) -> VideoCost:
    """The costs of one video of which at most `shown` frames are asked (None: all); with the table where it holds for all frame
    numbers and times that are then printed."""
    fits = (total if shown is None else shown) < 10**MOST_DIGITS and start + total / fps < 10**MOST_DIGITS - 1
    return VideoCost(total, fps, start, frame_table(tokenizer, dialect) if fits else None, tokenizer, dialect)


def frames_before(mark: int, total: int, n: int) -> int:
    """How many of the `n` frames that `uniform` chooses from `total` have an index below `mark`."""
    if mark <= 0:
        return 0
    if mark >= total:
        return n
    if n == 1:
        return int((total - 1) // 2 < mark)
    # The same operations as numpy's linspace: all but the last frame lie at round(i * step). The estimate may be off by
    # one at a tie, which the two loops settle.
    step = (total - 1) / (n - 1)
    count = min(n - 1, int((mark - 0.5) / step) + 1)
    while count > 0 and round((count - 1) * step) >= mark:
        count -= 1
    while count < n - 1 and round(count * step) < mark:
        count += 1
    return count


def largest(fits: Callable[[int], bool], high: int, *, rises: bool) -> int:
    """The largest step from 0 to `high` that fits; step 0 is taken to fit.

    With `rises`, no step beyond one that does not fit fits, and the search is by bisection; else every step is tried, from the
    top.
    """
    if fits(high):
        return high
    if not rises:
        return next((step for step in range(high - 1, 0, -1) if fits(step)), 0)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _first_at(threshold: float, start: float, fps: float) -> int:
    """The least frame index that is shown at `threshold` seconds or later."""
    index = max(0, int((threshold - start) * fps))
    while index > 0 and start + (index - 1) / fps >= threshold:
        index -= 1
    while start + index / fps < threshold:
        index += 1
    return index


@lru_cache(maxsize=1 << 16)
def _frame_tokens(tokenizer: PromptTokenizer, dialect: Dialect, number: int, seconds: str) -> int:
    return frame_tokens(tokenizer, dialect, number, float(seconds))
