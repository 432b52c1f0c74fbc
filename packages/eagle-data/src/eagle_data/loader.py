"""The loader: prepared samples to packs, in an order that seed and epoch fix, with a state that resumes exactly.

The stream of packs is endless: epoch after epoch, each packed anew. Rank r of w takes packs r, r + w, r + 2w, … of
that one stream, so no sample is lost or repeated when epochs end unevenly. The state is the number of packs the
whole world has consumed, which makes it valid for any other world size that divides it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from eagle_data.collate import LoadedSample
from eagle_data.encode import Encoded
from eagle_data.errors import EagleDataError
from eagle_data.packing import pack
from eagle_data.prepared import PreparedDataset
from eagle_data.units import load_units

TileChoice: TypeAlias = Callable[[Sequence[Encoded]], Callable[[int], bool]]
"""From the samples of a pack, in order, to a predicate: whether to load a tile or frame, counted over the pack."""


@dataclass(frozen=True)
class Source:
    """A prepared dataset and how it is mixed: `repeat` (fractional allowed) passes per epoch, augmentation or not."""

    dataset: PreparedDataset
    repeat: float = 1.0
    augment: bool = False


@dataclass(frozen=True)
class Pack:
    """The samples of one pack with their pixels, and what could not be loaded as `(where, reason)`.

    Where the loader has a `load`, `pixels` of a sample are the chosen tiles only.
    """

    samples: tuple[LoadedSample, ...]
    failures: tuple[tuple[str, str], ...]
    epoch: int


class PackLoader:
    """Iterate packs of at most `context_length` tokens (and `max_tiles` tiles) from `sources`.

    `prefetch` packs are decoded ahead by as many threads; 0 decodes in the caller. A sample whose media cannot be
    read is left out of its pack and reported in `Pack.failures`, once per attempt.

    `load` chooses the tiles of each pack that this process decodes, as for ranks that share a pack and divide its pictures
    (`VisionPlan.loads` of eagle-parallel answers for a tile and a rank); tokens and labels are those of the whole pack. It is
    called once a pack, from the threads of `prefetch`. A sample that cannot be read then stays, with zeros for its tiles,
    since ranks that do not read it have it as well: whoever gives `load` tells the other ranks of `Pack.failures`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        context_length: int,
        tile_size: int,
        seed: int,
        max_tiles: int | None = None,
        use_thumbnail: bool = True,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 2,
        load: TileChoice | None = None,
    ):
        if not sources or not any(len(source.dataset) for source in sources):
            names = ", ".join(source.dataset.name for source in sources) or "none"
            raise ValueError(
                f"no prepared sample fits context_length {context_length} (datasets: {names}); "
                "rejects.jsonl and too_long.jsonl of the prepared folder say why"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is outside a world of {world}")
        self.sources = tuple(sources)
        self.context_length = context_length
        self.tile_size = tile_size
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.seed = seed
        self.rank = rank
        self.world = world
        self.prefetch = prefetch
        self.load = load
        self._consumed = 0
        self._epochs: dict[int, list[tuple[tuple[int, int], ...]]] = {}

    def state_dict(self) -> dict[str, int]:
        """How many packs of the stream the whole world has consumed, with the seed they were drawn from."""
        return {"consumed": self._consumed, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state`; raises ValueError for another seed or a world size that does not divide it."""
        if state["seed"] != self.seed:
            raise ValueError(f"the state was drawn from seed {state['seed']}, this loader from {self.seed}")
        if state["consumed"] % self.world:
            raise ValueError(f"{state['consumed']} packs were consumed, which {self.world} ranks cannot continue evenly")
        self._consumed = state["consumed"]

    def epoch_packs(self, epoch: int) -> list[tuple[tuple[int, int], ...]]:
        """The packs of an epoch, each a tuple of `(source, row)`."""
        if epoch not in self._epochs:
            rng = np.random.default_rng([self.seed, epoch])
            members: list[tuple[int, int]] = []
            for number, source in enumerate(self.sources):
                rows = len(source.dataset)
                whole, part = divmod(source.repeat, 1.0)
                members += [(number, row) for _ in range(int(whole)) for row in range(rows)]
                members += [(number, int(row)) for row in rng.permutation(rows)[: round(part * rows)]]
            lengths = [int(self.sources[s].dataset.lengths[row]) for s, row in members]
            tiles = [int(self.sources[s].dataset.tiles[row]) for s, row in members]
            packs = pack(
                lengths,
                tiles,
                [int(i) for i in rng.permutation(len(members))],
                max_tokens=self.context_length,
                max_tiles=self.max_tiles,
            )
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = [tuple(members[i] for i in indices) for indices in packs]
        return self._epochs[epoch]

    def _stream(self, position: int) -> Iterator[tuple[int, int, tuple[tuple[int, int], ...]]]:
        """`(position, epoch, members)` of every pack from `position` on."""
        epoch, first = 0, 0
        while True:
            packs = self.epoch_packs(epoch)
            if not packs:
                raise ValueError("an epoch of this mixture holds no sample; raise repeat_time")
            for i in range(max(0, position - first), len(packs)):
                yield first + i, epoch, packs[i]
            first += len(packs)
            epoch += 1

    def members(self, packs: int) -> tuple[set[str], set[str]]:
        """Provenance of the samples in the first `packs` packs of this rank's stream, and of those that were degraded."""
        own = [item for _, item in zip(range(packs * self.world), self._stream(0), strict=False)][self.rank :: self.world]
        rows = {member for _, _, members in own for member in members}
        names = {(s, row): self.sources[s].dataset.where(row) for s, row in rows}
        return set(names.values()), {name for (s, row), name in names.items() if self.sources[s].dataset.degraded(row)}

    def _load(self, epoch: int, members: tuple[tuple[int, int], ...]) -> Pack:
        samples, failures, first = [], [], 0
        stored = [self.sources[number].dataset[row] for number, row in members]
        chosen = self.load([encoded for encoded, _ in stored]) if self.load else None
        for (number, row), (encoded, where) in zip(members, stored, strict=True):
            augment = np.random.default_rng([self.seed, epoch, number, row]) if self.sources[number].augment else None
            wanted = None if chosen is None else [tile for tile in range(encoded.tiles) if chosen(first + tile)]
            first += encoded.tiles
            try:
                pixels = load_units(
                    encoded.units,
                    tile_size=self.tile_size,
                    use_thumbnail=self.use_thumbnail,
                    augment=augment,
                    wanted=wanted,
                )
            except EagleDataError as error:
                failures.append((where, str(error)))
                if wanted is None:
                    continue
                pixels = np.zeros((len(wanted), 3, self.tile_size, self.tile_size), dtype=np.float32)
            samples.append(LoadedSample(encoded.input_ids, encoded.labels, pixels, where))
        return Pack(tuple(samples), tuple(failures), epoch)

    def __iter__(self) -> Iterator[Pack]:
        """Packs of this rank, for ever; a pack counts as consumed once it has been yielded."""
        mine = (item for item in self._stream(self._consumed) if item[0] % self.world == self.rank)
        if self.prefetch == 0:
            for position, epoch, members in mine:
                pack_ = self._load(epoch, members)
                self._consumed = position - self.rank + self.world
                yield pack_
            return
        with ThreadPoolExecutor(self.prefetch, thread_name_prefix="eagle-loader") as pool:
            ahead: deque[tuple[int, Future[Pack]]] = deque()
            try:
                while True:
                    while len(ahead) <= self.prefetch:
                        position, epoch, members = next(mine)
                        ahead.append((position, pool.submit(self._load, epoch, members)))
                    position, future = ahead.popleft()
                    pack_ = future.result()
                    self._consumed = position - self.rank + self.world
                    yield pack_
            finally:
                for _, future in ahead:
                    future.cancel()
