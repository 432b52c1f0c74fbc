"""Packing: samples to packs under two budgets at once, tokens and tiles, without cutting any sample.

Three modes. `BestFit` starts each pack with the sample that has waited longest and adds the longest one that still
fits, so packs are full and no sample waits for more packs than there were samples before it. `LikeLength` adds
the nearest in length instead, up to a number of samples. `Single` packs nothing. Where a pack takes more samples than
may wait, more come in while it is being filled. Integers only, no I/O.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Mode: TypeAlias = Literal["packed", "grouped", "unpacked"]

BUFFER = 1024
"""Samples that wait for a pack. More give a longer choice; a pack may hold any number, since the buffer refills as it fills."""

_DRAW_BITS = 40
_LAST_DRAW = (1 << _DRAW_BITS) - 1
_SCAN = 64
"""Waiting samples that are looked at for one that fits the other budget as well."""


def _nothing() -> None:
    """Nothing more comes."""


@dataclass(frozen=True)
class Budget:
    """What a pack holds at most: `max_tokens`, and `max_tiles` tiles (None: any number)."""

    max_tokens: int
    max_tiles: int | None = None

    def takes(self, tokens: int, tiles: int) -> bool:
        return tokens <= self.max_tokens and (self.max_tiles is None or tiles <= self.max_tiles)

    def __str__(self) -> str:
        return f"{self.max_tokens} tokens{'' if self.max_tiles is None else f' and {self.max_tiles} tiles'}"


class Packer(Protocol):
    """Samples in, oldest first; packs out. A sample is named by its draw, an int that grows with age."""

    def add(self, draws: Sequence[int], lengths: Sequence[int], tiles: Sequence[int]) -> None:
        """Let samples wait. Each must fit the budget alone, and be younger than all before it."""
        ...

    def take(self, low: int = 0, more: Callable[[], object] = _nothing) -> tuple[int, ...]:
        """The next pack, draws ascending, which holds the oldest sample; IndexError where none waits.

        `more` is called whenever fewer than `low` samples wait for the rest of the pack, and may `add` some.
        """
        ...

    def waiting(self) -> list[int]:
        """The draws that wait, oldest first; with their lengths and tiles, the whole state of the packer."""
        ...

    def __len__(self) -> int: ...


class _Ages:
    """What waits, by age: the part that all modes share."""

    def __init__(self) -> None:
        self._ages: deque[int] = deque()
        self._known: dict[int, tuple[int, int]] = {}

    def waiting(self) -> list[int]:
        return [draw for draw in self._ages if draw in self._known]

    def __len__(self) -> int:
        return len(self._known)

    def _let_wait(self, draws: Sequence[int]) -> None:
        """Note the ages of draws that are in `_known`; those of samples that left are dropped before they are many."""
        self._ages.extend(draws)
        if len(self._ages) > 4 * len(self._known) + 64:
            self._ages = deque(self.waiting())

    def _oldest(self) -> tuple[int, int, int]:
        """Remove the oldest and return its draw, length and tiles."""
        while (draw := self._ages.popleft()) not in self._known:
            pass
        return draw, *self._known.pop(draw)


class BestFit(_Ages):
    """Oldest first, then the best fit in whichever budget is scarcer in the pack: the longest sample that fits, or the one
    with most tiles; among equals the oldest.

    With a tile budget, samples with and without pictures wait in lists of their own, so that a pack which is full of
    tiles goes on with text at once.
    """

    def __init__(self, budget: Budget):
        super().__init__()
        self._budget = budget
        # Keys: the length (or the tiles) above, the age below: one search in a sorted list of ints gives the best fit.
        self._plain: list[int] = []
        self._pictured: list[int] = []
        self._by_tiles: list[int] = []
        self._apart = budget.max_tiles is not None

    def add(self, draws: Sequence[int], lengths: Sequence[int], tiles: Sequence[int]) -> None:
        for draw, length, count in zip(draws, lengths, tiles, strict=True):
            self._known[draw] = length, count
            if count and self._apart:
                insort(self._pictured, (length << _DRAW_BITS) | (_LAST_DRAW - draw))
                insort(self._by_tiles, (count << _DRAW_BITS) | (_LAST_DRAW - draw))
            else:
                insort(self._plain, (length << _DRAW_BITS) | (_LAST_DRAW - draw))
        self._let_wait(draws)

    def take(self, low: int = 0, more: Callable[[], object] = _nothing) -> tuple[int, ...]:
        known, plain = self._known, self._plain
        draw, length, tiles = self._oldest()
        self._remove(draw, length, tiles)
        members = [draw]
        room = self._budget.max_tokens - length
        tile_room = 0 if self._budget.max_tiles is None else self._budget.max_tiles - tiles
        while True:
            if len(known) < low:
                more()
            at = bisect_left(plain, (room + 1) << _DRAW_BITS) - 1
            draw = _LAST_DRAW - (plain[at] & _LAST_DRAW) if at >= 0 else -1
            if tile_room > 0 and self._pictured:
                pictured = self._fitting(room, tile_room, longer_than=plain[at] if at >= 0 else -1)
                draw = draw if pictured < 0 else pictured
            if draw < 0:
                return tuple(sorted(members))
            length, tiles = known.pop(draw)
            self._remove(draw, length, tiles)
            members.append(draw)
            room -= length
            tile_room -= tiles

    def _fitting(self, room: int, tile_room: int, longer_than: int) -> int:
        """The best sample with pictures for what is left of a pack; -1 for none, or none better than the text at hand."""
        known, budget = self._known, self._budget
        assert budget.max_tiles is not None
        if tile_room * budget.max_tokens >= room * budget.max_tiles:
            last = bisect_left(self._pictured, (room + 1) << _DRAW_BITS) - 1
            for place in range(last, max(-1, last - _SCAN), -1):
                key = self._pictured[place]
                if key < longer_than:
                    return -1
                if known[_LAST_DRAW - (key & _LAST_DRAW)][1] <= tile_room:
                    return _LAST_DRAW - (key & _LAST_DRAW)
        last = bisect_left(self._by_tiles, (tile_room + 1) << _DRAW_BITS) - 1
        for place in range(last, max(-1, last - _SCAN), -1):
            draw = _LAST_DRAW - (self._by_tiles[place] & _LAST_DRAW)
            if known[draw][0] <= room:
                return draw
        return -1

    def _remove(self, draw: int, length: int, tiles: int) -> None:
        age = _LAST_DRAW - draw
        own = self._pictured if tiles and self._apart else self._plain
        own.pop(bisect_left(own, (length << _DRAW_BITS) | age))
        if tiles and self._apart:
            self._by_tiles.pop(bisect_left(self._by_tiles, (tiles << _DRAW_BITS) | age))


class LikeLength(_Ages):
    """Oldest first, then the nearest in length, until `group` samples are together or the next would exceed a budget."""

    def __init__(self, budget: Budget, group: int):
        super().__init__()
        self._budget = budget
        self._group = group
        self._by_length: list[tuple[int, int]] = []

    def add(self, draws: Sequence[int], lengths: Sequence[int], tiles: Sequence[int]) -> None:
        for draw, length, count in zip(draws, lengths, tiles, strict=True):
            self._known[draw] = length, count
            insort(self._by_length, (length, draw))
        self._let_wait(draws)

    def take(self, low: int = 0, more: Callable[[], object] = _nothing) -> tuple[int, ...]:
        oldest, first, tiles = self._oldest()
        waiting = self._by_length
        at = bisect_right(waiting, (first, oldest)) - 1
        waiting.pop(at)
        members, tokens = [oldest], first
        while len(members) < self._group:
            if len(waiting) < low:
                more()
                at = bisect_right(waiting, (first, oldest))
            if not waiting:
                break
            shorter = at > 0 and (at == len(waiting) or first - waiting[at - 1][0] <= waiting[at][0] - first)
            at -= shorter
            length, draw = waiting[at]
            tokens += length
            tiles += self._known[draw][1]
            if not self._budget.takes(tokens, tiles):
                break
            waiting.pop(at)
            del self._known[draw]
            members.append(draw)
        return tuple(sorted(members))


class Single(_Ages):
    """Every sample is a pack, in the order of their ages."""

    def add(self, draws: Sequence[int], lengths: Sequence[int], tiles: Sequence[int]) -> None:
        self._known.update(zip(draws, zip(lengths, tiles, strict=True), strict=True))
        self._let_wait(draws)

    def take(self, low: int = 0, more: Callable[[], object] = _nothing) -> tuple[int, ...]:
        return (self._oldest()[0],)


def make_packer(mode: Mode, budget: Budget, *, group: int = 1) -> Packer:
    """The packer of a mode; `group` is the number of samples in a pack of mode "grouped"."""
    if mode == "packed":
        return BestFit(budget)
    if mode == "grouped":
        if group < 1:
            raise ValueError(f"group must be at least 1, not {group}")
        return LikeLength(budget, group)
    if mode == "unpacked":
        return Single()
    raise ValueError(f"there is no packing mode {mode!r}; use packed, grouped or unpacked")


def drain(
    packer: Packer, feed: Callable[[int], tuple[Sequence[int], Sequence[int], Sequence[int]]], *, buffer: int
) -> Iterator[tuple[int, ...]]:
    """Packs until nothing is left; `feed(n)` gives at most n new draws, lengths and tiles, fewer only at the end.

    Up to `buffer` samples wait when a pack is begun; they are made up to `buffer` again whenever a pack has left fewer than
    half of them.
    """
    low = (buffer + 1) // 2

    def more() -> None:
        wanted = buffer - len(packer)
        if wanted > 0:
            packer.add(*feed(wanted))

    while True:
        more()
        if not len(packer):
            return
        yield packer.take(low, more)


def pack(
    lengths: Sequence[int],
    tiles: Sequence[int],
    order: Sequence[int],
    *,
    max_tokens: int,
    max_tiles: int | None = None,
    buffer: int = BUFFER,
    mode: Mode = "packed",
    group: int = 1,
) -> list[tuple[int, ...]]:
    """Pack the samples `order` (indices into `lengths` and `tiles`) and return packs of indices.

    Every index of `order` is in exactly one pack, as often as it occurs there. At most `buffer` samples wait at a time,
    and each pack takes the one that waited longest, so a sample is packed at most `buffer` packs after its turn came. A pack
    holds as many samples as its budget takes, also more than `buffer`.
    Raises ValueError for a sample that exceeds a budget alone.
    """
    if buffer < 1:
        raise ValueError(f"buffer must be at least 1, not {buffer}")
    budget = Budget(max_tokens, max_tiles)
    for index in order:
        if not budget.takes(lengths[index], tiles[index]):
            raise ValueError(too_large(f"sample {index}", lengths[index], tiles[index], budget))
    begun = 0

    def feed(count: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        nonlocal begun
        draws = range(begun, min(begun + count, len(order)))
        begun = draws.stop
        return draws, [int(lengths[order[draw]]) for draw in draws], [int(tiles[order[draw]]) for draw in draws]

    packs = drain(make_packer(mode, budget, group=group), feed, buffer=buffer)
    return [tuple(int(order[draw]) for draw in members) for members in packs]


def too_large(name: str, tokens: int, tiles: int, budget: Budget) -> str:
    """What to say of a sample that no pack can hold."""
    return (
        f"{name} has {tokens} tokens and {tiles} tiles, more than a pack of {budget} can hold; "
        "plan it for this context length first"
    )


__all__ = ["BUFFER", "BestFit", "Budget", "LikeLength", "Mode", "Packer", "Single", "drain", "make_packer", "pack", "too_large"]
