"""The one stream of packs that all ranks share: epoch after epoch without a seam, fixed by seed, rows and plan.

The stream is made in windows of some steps, within which packs are dealt by cost. What makes a window is small (where
the epoch's order stands and which draws wait), so a place in the stream is a few kilobytes whatever the data, and going on
there costs packing one window again. No media and no tokens: only lengths and tile counts. Packs never mix epochs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from eagle_data.dealing import PackCost, deal
from eagle_data.epoch_order import Draws, EpochOrder
from eagle_data.packing import BUFFER, Budget, Mode, drain, make_packer, too_large

_CHUNK = 4096
_MOST_DRAWS = 1 << 40
_LEAST_DRAWS = 0.5
"""Below this many samples an epoch, on average, most epochs would be empty."""
_WINDOW_SAMPLES = 1 << 16
"""Samples after which a window ends with its step, so that going on within it takes well under a second."""


@dataclass(frozen=True)
class StreamPlan:
    """How samples become packs. `global_batch` packs are one step of all ranks; `window_steps` steps are dealt together.

    `mode` is "packed" (full packs of at most `context_length` tokens and `max_tiles` tiles, out of `buffer` waiting samples),
    "grouped" (`group` samples of like length to a pack) or "unpacked" (one sample to a pack).
    """

    context_length: int
    max_tiles: int | None = None
    seed: int = 0
    global_batch: int = 1
    window_steps: int = 16
    mode: Mode = "packed"
    group: int = 1
    buffer: int = BUFFER
    cost: PackCost = field(default_factory=PackCost)

    def __post_init__(self) -> None:
        for name in ("context_length", "global_batch", "window_steps", "group", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def budget(self) -> Budget:
        return Budget(self.context_length, self.max_tiles)


@dataclass(frozen=True)
class Place:
    """Where a window begins, and all that is needed to make it again.

    `epoch`, the `number` of the window in it, the next draw `cursor`, the draws that `wait`, and the window's dealing: steps
    of `group` packs after `head` packs that complete a step.
    """

    epoch: int = 0
    number: int = 0
    cursor: int = 0
    wait: tuple[int, ...] = ()
    group: int = 1
    head: int = 0


@dataclass(frozen=True)
class Window:
    """The packs made from `place`, tuples of draws in the order in which they are given out, and the place after them."""

    place: Place
    packs: tuple[tuple[int, ...], ...]
    after: Place


class PackStream:
    """Packs over sources of `lengths[s]` and `tiles[s]` (int arrays, a row each) repeated `repeats[s]` times an epoch.

    `names[s]` names a source in errors, `digests[s]` says what its rows hold, for the fingerprint. Raises ValueError where a row
    exceeds a budget alone, a repeat is negative or not finite, or an epoch holds no sample or 2^40.
    """

    def __init__(
        self,
        lengths: Sequence[np.ndarray],
        tiles: Sequence[np.ndarray],
        repeats: Sequence[float],
        plan: StreamPlan,
        *,
        names: Sequence[str] | None = None,
        digests: Sequence[str] = (),
    ):
        self.plan = plan
        self._sizes = [len(one) for one in lengths]
        self._repeats = [float(repeat) for repeat in repeats]
        self._contents = list(zip(names or (), digests, strict=False))
        for number, (tokens, count) in enumerate(zip(lengths, tiles, strict=True)):
            over = np.asarray(tokens) > plan.context_length
            if plan.max_tiles is not None:
                over |= np.asarray(count) > plan.max_tiles
            if over.any():
                row = int(np.argmax(over))
                name = f"sample {row} of {names[number] if names else f'source {number}'}"
                raise ValueError(too_large(name, int(tokens[row]), int(count[row]), plan.budget))
        empty = np.zeros(0, dtype=np.int32)
        self._lengths = np.concatenate([empty, *(np.asarray(one, dtype=np.int32) for one in lengths)])
        self._tiles = np.concatenate([empty, *(np.asarray(one, dtype=np.int32) for one in tiles)])
        self._bases = np.concatenate([[0], np.cumsum(self._sizes)])[:-1].astype(np.int64)
        self._order: EpochOrder | None = None
        self._order_of = -1
        for number, repeat in enumerate(self._repeats):
            name = names[number] if names else f"source {number}"
            if not (math.isfinite(repeat) and repeat >= 0):
                raise ValueError(f"{name}: repeat {repeat} is no number of passes; give a finite one that is not negative")
        expected = sum(size * repeat for size, repeat in zip(self._sizes, self._repeats, strict=True))
        if expected < _LEAST_DRAWS:
            raise ValueError("an epoch of this mixture holds no sample; raise repeat_time")
        if expected >= _MOST_DRAWS:
            raise ValueError(f"an epoch of this mixture holds {expected:g} samples; lower repeat_time")

    def fingerprint(self) -> str:
        """Equal for two streams that give the same packs; 16 hexadecimal digits. The global batch is not part of it."""
        plan = {name: value for name, value in asdict(self.plan).items() if name != "global_batch"}
        contents = repr((plan, self._sizes, self._repeats, self._contents))
        digest = hashlib.blake2b(contents.encode("utf-8", "backslashreplace"), digest_size=8)
        digest.update(self._lengths.data)
        digest.update(self._tiles.data)
        return digest.hexdigest()

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch; the last one asked for is kept."""
        if self._order is None or self._order_of != epoch:
            self._order = EpochOrder(self._sizes, self._repeats, seed=self.plan.seed, epoch=epoch)
            self._order_of = epoch
        return self._order

    def members(self, epoch: int, draws: Sequence[int]) -> list[tuple[int, int, int]]:
        """`(source, row, copy)` of each draw of an epoch."""
        drawn = self.order(epoch)[np.asarray(draws, dtype=np.int64)]
        return list(zip(drawn.source.tolist(), drawn.row.tolist(), drawn.copy.tolist(), strict=True))

    def epoch_packs(self, epoch: int) -> Iterator[tuple[int, ...]]:
        """All packs of an epoch, as they are packed and not yet dealt."""
        return self._pack(Place(epoch), _Feed(self, self.order(epoch), 0))

    def window(self, place: Place) -> Window:
        """The window that begins at `place`, or with the next epoch that holds a sample."""
        while not self.order(place.epoch).size:
            place = Place(place.epoch + 1, group=place.group, head=place.head)
        order = self.order(place.epoch)
        feed = _Feed(self, order, place.cursor)
        packs: list[tuple[int, ...]] = []
        samples = 0
        full = place.head + self.plan.window_steps * place.group
        done = False
        making = self._pack(place, feed)
        while len(packs) < full:
            members = next(making, None)
            if members is None:
                done = True
                break
            packs.append(members)
            samples += len(members)
            if samples >= _WINDOW_SAMPLES and len(packs) >= place.head and (len(packs) - place.head) % place.group == 0:
                break
        waiting = feed.waiting() if not done else []
        done = done or (not waiting and feed.cursor == order.size)
        key = (self.plan.seed, place.epoch, place.number)
        dealt = deal(self._costs(order, packs), place.group, *key, head=place.head)
        if done:
            after = Place(place.epoch + 1, group=place.group)
        else:
            after = Place(place.epoch, place.number + 1, feed.cursor, tuple(waiting), place.group)
        return Window(place, tuple(packs[i] for i in dealt), after)

    def _pack(self, place: Place, feed: _Feed) -> Iterator[tuple[int, ...]]:
        packer = feed.packer = make_packer(self.plan.mode, self.plan.budget, group=self.plan.group)
        if place.wait:
            packer.add(*feed.of(np.asarray(place.wait, dtype=np.int64)))
        return drain(packer, feed, buffer=self.plan.buffer)

    def _costs(self, order: EpochOrder, packs: Sequence[tuple[int, ...]]) -> np.ndarray:
        if not packs:
            return np.zeros(0)
        lengths, tiles = self.sizes(order[np.concatenate([np.asarray(members, dtype=np.int64) for members in packs])])
        starts = np.concatenate([[0], np.cumsum([len(members) for members in packs])[:-1]])
        return np.add.reduceat(self.plan.cost.of(lengths, tiles), starts)

    def sizes(self, drawn: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and tiles of each draw, int32 each."""
        rows = self._bases[drawn.source] + drawn.row
        return self._lengths[rows], self._tiles[rows]


class _Feed:
    """Draws of one epoch with their sizes, from `cursor` on, computed a chunk ahead."""

    packer: Any

    def __init__(self, stream: PackStream, order: EpochOrder, cursor: int):
        self._stream = stream
        self._order = order
        self.cursor = cursor
        self._first = cursor
        self._chunk: tuple[list[int], list[int], list[int]] = ([], [], [])

    def of(self, draws: np.ndarray) -> tuple[list[int], list[int], list[int]]:
        lengths, tiles = self._stream.sizes(self._order[draws])
        return draws.tolist(), lengths.tolist(), tiles.tolist()

    def __call__(self, count: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        count = min(count, self._order.size - self.cursor)
        if self.cursor + count > self._first + len(self._chunk[0]):
            self._first = self.cursor
            self._chunk = self.of(np.arange(self.cursor, min(self.cursor + max(count, _CHUNK), self._order.size)))
        at = self.cursor - self._first
        self.cursor += count
        draws, lengths, tiles = self._chunk
        return draws[at : at + count], lengths[at : at + count], tiles[at : at + count]

    def waiting(self) -> list[int]:
        return self.packer.waiting()


__all__ = ["PackStream", "Place", "StreamPlan", "Window"]
