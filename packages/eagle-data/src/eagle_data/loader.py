"""The loader: one rank's packs of the stream that all ranks share, decoded ahead by workers, with a state that resumes exactly.

The stream is endless: epoch after epoch, each packed anew. Of each step of `global_batch` packs, rank r of w takes
every w-th from r on, so no sample is lost or repeated when epochs end unevenly, and the steps are the same for every
number of ranks and workers. The state is a place in the stream, the same on all ranks and good for any number of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

from eagle_data.dealing import PackCost
from eagle_data.load_report import LoadReport
from eagle_data.pack_loading import BadMedia, Pack, PackLoading, Rows, Source, TileChoice, content_digest
from eagle_data.pack_stream import PackStream, Place, StreamPlan, Window
from eagle_data.packing import BUFFER, Mode

_EPOCHS_KEPT = 64
_NEEDED = ("seed", "data", "consumed", "offset", "place", "global_batch", "phase", "epoch_sizes")


def by_weight(datasets: Sequence[Rows], weights: Sequence[float], *, samples: int, augment: bool = False) -> list[Source]:
    """Sources such that an epoch has about `samples` samples, each dataset's share of them in proportion to its weight.

    A dataset smaller than its share is repeated, a larger one drawn from anew each epoch. Empty datasets are left out of the
    shares. Raises ValueError for a negative weight, or where nothing has any.
    """
    useful = [weight if len(dataset) else 0.0 for dataset, weight in zip(datasets, weights, strict=True)]
    if min(weights) < 0 or not sum(useful):
        raise ValueError(f"weights {list(weights)} must not be negative, and one with samples must be positive")
    total = sum(useful)
    repeats = [samples * weight / total / max(len(one), 1) for one, weight in zip(datasets, useful, strict=True)]
    return [Source(dataset, repeat, augment) for dataset, repeat in zip(datasets, repeats, strict=True)]


class StatefulLoader:
    """Iterate packs of at most `context_length` tokens (and `max_tiles` tiles) from `sources`, for ever.

    `workers` threads decode up to `prefetch` packs ahead (as many as workers when None); 0 decodes in the caller. Decoders
    release the interpreter's lock, so threads share datasets and give packs without copying. `global_batch` packs, one a
    rank when None, are a step; within `window_steps` of them packs of like `cost` meet. `mode`, `group` and `buffer` are those
    of `StreamPlan`.

    `bad_media` says what becomes of a sample whose media cannot be read: "substitute" gives another sample of its source in its
    room, and blanks it where none is found; "blank" keeps its tokens with zero pixels and nothing supervised; "leave_out" drops
    it, so that a pack may come out empty. It is in `Pack.failures` and counted in `report`.

    `load` chooses the tiles of each pack that this process decodes, as for ranks that share a pack and divide its pictures
    (`VisionPlan.loads` of eagle-parallel answers for a tile and a rank); tokens and labels are those of the whole pack. It is
    called once a pack, from the workers' threads; bad media then give zeros, as `PackLoading` says.

    One iterator is live at a time: after another `iter`, `load_state_dict` or `seek`, an older one raises RuntimeError at its
    next step.
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
        global_batch: int | None = None,
        workers: int = 2,
        prefetch: int | None = None,
        mode: Mode = "packed",
        group: int = 1,
        buffer: int = BUFFER,
        window_steps: int = 16,
        cost: PackCost | None = None,
        bad_media: BadMedia = "substitute",
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
        batch = world if global_batch is None else global_batch
        if batch < 1 or batch % world:
            raise ValueError(f"global_batch {batch} cannot be shared by {world} ranks; use a multiple of {world}")
        self.sources = tuple(sources)
        self.rank = rank
        self.world = world
        self.workers = workers
        self.prefetch = max(1, workers if prefetch is None else prefetch)
        self.report = LoadReport()
        plan = StreamPlan(
            context_length, max_tiles, seed, batch, window_steps, mode, group, buffer, PackCost() if cost is None else cost
        )
        self._stream = PackStream(
            [source.dataset.lengths for source in sources],
            [source.dataset.tiles for source in sources],
            [source.repeat for source in sources],
            plan,
            names=[source.dataset.name for source in sources],
            digests=[content_digest(source.dataset) for source in sources],
        )
        self.plan = plan
        self._loading = PackLoading(self.sources, tile_size, use_thumbnail, seed, bad_media, load)
        self._epoch_sizes: dict[int, int] = {}
        self._data = self._stream.fingerprint()
        self._live = 0  # which iterator may go on
        self._consumed = 0
        self._phase = (0, 0)  # a stream position at which so many packs of a step had been taken
        self._places: deque[tuple[int, Place]] = deque([(0, Place(group=batch))])

    def state_dict(self, *, counts: bool | None = None) -> dict[str, Any]:
        """The place in the stream after what the whole world has consumed: JSON values.

        It is the same on all ranks once each has taken the same number of packs. With `counts` it holds `report` as well, which
        is each rank's own; None means with one rank only. Whatever the data it is bounded: at most `buffer` draws that wait,
        about 12 bytes each, some counted epochs, and at most 20 failures, place and reason cut to 600 bytes; under 100 kB at
        the default buffer.
        """
        while self._places[-1][0] < self._consumed:
            # Another rank may be in a window that this one has not come to; the state has to be the same.
            self._note(self._places[-1][0], self._stream.window(self._places[-1][1]))
        start, place = self._place()
        state: dict[str, Any] = {
            "seed": self.plan.seed,
            "data": self._data,
            "consumed": self._consumed,
            "offset": self._consumed - start,
            "place": {**asdict(place), "wait": list(place.wait)},
            "global_batch": self.plan.global_batch,
            "phase": self._phase_at(self._consumed),
            "epoch_sizes": {str(epoch): size for epoch, size in list(self._epoch_sizes.items())[-_EPOCHS_KEPT:]},
        }
        if self.world == 1 if counts is None else counts:
            state["report"] = self.report.state()
        return state

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Go on after `state`, also with another number of ranks, workers or packs a step.

        Where the window that the state lies in was dealt for another `global_batch`, it is finished as it was dealt.
        Raises ValueError for a state that lacks something, for another seed, and for other data, repeats or packing; with
        strict=False the latter go on at the same number of packs of their own stream, which has no exact place for them.
        """
        missing = [name for name in _NEEDED if name not in state]
        if missing:
            raise ValueError(f"the state of the loader lacks {', '.join(missing)}; give what state_dict returned, whole")
        if state["seed"] != self.plan.seed:
            raise ValueError(f"the state was drawn from seed {state['seed']}, this loader from {self.plan.seed}")
        if state["data"] != self._data:
            if strict:
                raise ValueError(
                    "the state was taken with other data, repeats or packing than this loader's; give the same prepared data and "
                    "settings, or strict=False to go on at the same number of packs"
                )
            self.seek(state["consumed"])
            self._take_counts(state)
            return
        place = state["place"]
        self._live += 1
        self._consumed = state["consumed"]
        self._places = deque([(self._consumed - state["offset"], Place(**{**place, "wait": tuple(place["wait"])}))])
        self._phase = (self._consumed, state["phase"] if state["global_batch"] == self.plan.global_batch else 0)
        self._epoch_sizes = {int(epoch): size for epoch, size in state["epoch_sizes"].items()}
        self._take_counts(state)

    def _take_counts(self, state: dict[str, Any]) -> None:
        if "report" in state:
            self.report = LoadReport.from_state(state["report"])

    def seek(self, consumed: int) -> None:
        """Go to a number of packs from the beginning, which packs everything before it."""
        self._live += 1
        self._consumed, self._phase = 0, (0, 0)
        self._places = deque([(0, Place(group=self.plan.global_batch))])
        for start, window in self._windows():
            if start + len(window.packs) >= consumed:
                self._places = deque([(start, window.place)])
                break
        self._consumed = consumed

    def epoch_packs(self, epoch: int) -> list[tuple[tuple[int, int], ...]]:
        """The packs of an epoch, each a tuple of `(source, row)`, in no promised order; takes time and memory by the sample."""
        packs = []
        for draws in self._stream.epoch_packs(epoch):
            packs.append(tuple((source, row) for source, row, _ in self._stream.members(epoch, draws)))
        self._epoch_sizes[epoch] = len(packs)
        return packs

    def packs_in_epoch(self, epoch: int) -> int:
        """How many packs an epoch has; counted by packing it once, then remembered, also in the state."""
        if epoch not in self._epoch_sizes:
            self._epoch_sizes[epoch] = sum(1 for _ in self._stream.epoch_packs(epoch))
        return self._epoch_sizes[epoch]

    def members(self, packs: int) -> tuple[set[str], set[str]]:
        """Provenance of the samples in the first `packs` packs of this rank's stream, and of those that were degraded."""
        rows: set[tuple[int, int]] = set()
        start = Place(group=self.plan.global_batch)
        for position, epoch, draws in self._flat(self._windows(0, start, (0, 0)), 0):
            if position >= packs * self.world:
                break
            if position % self.world == self.rank:
                rows.update((source, row) for source, row, _ in self._stream.members(epoch, draws))
        names = {(source, row): self.sources[source].dataset.where(row) for source, row in rows}
        degraded = {name for (source, row), name in names.items() if self.sources[source].dataset.degraded(row)}
        return set(names.values()), degraded

    def _phase_at(self, position: int, phase: tuple[int, int] | None = None) -> int:
        at, taken = phase or self._phase
        return (taken + position - at) % self.plan.global_batch

    def _windows(
        self, start: int | None = None, place: Place | None = None, phase: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Window]]:
        """Windows with the stream positions at which they begin, from the place of the state (or `place`) on."""
        if start is None or place is None:
            start, place = self._place()
        phase = phase or self._phase
        while True:
            window = self._stream.window(place)
            yield start, window
            start, place = self._after(start, window, phase)

    def _after(self, start: int, window: Window, phase: tuple[int, int]) -> tuple[int, Place]:
        """Where the window after one that begins at `start` begins; it completes the step that the first left open."""
        batch, end = self.plan.global_batch, start + len(window.packs)
        return end, replace(window.after, group=batch, head=(batch - self._phase_at(end, phase)) % batch)

    def _place(self) -> tuple[int, Place]:
        """The last window that begins no later than what was consumed, and where it begins."""
        return max((item for item in self._places if item[0] <= self._consumed), key=lambda item: item[0])

    def _note(self, start: int, window: Window) -> None:
        following = self._after(start, window, self._phase)
        if following[0] > self._places[-1][0]:
            self._places.append(following)

    def _flat(self, windows: Iterator[tuple[int, Window]], first: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """`(position, epoch, draws)` of every pack from position `first` on."""
        for start, window in windows:
            for position in range(max(first, start), start + len(window.packs)):
                yield position, window.place.epoch, window.packs[position - start]

    def _noted(self) -> Iterator[tuple[int, Window]]:
        """The windows from here on, their places kept for `state_dict` until they are behind."""
        for start, window in self._windows():
            self._note(start, window)
            while len(self._places) > 1 and self._places[1][0] <= self._consumed:
                self._places.popleft()
            yield start, window

    def __iter__(self) -> Iterator[Pack]:
        """Packs of this rank, for ever; a pack counts as consumed once it has been yielded. Older iterators may not go on."""
        self._live += 1
        return self._packs(self._live)

    def _packs(self, own: int) -> Iterator[Pack]:
        self._check_live(own)
        begun = self._consumed
        mine = (item for item in self._flat(self._noted(), begun) if (item[0] - begun) % self.world == self.rank)
        with closing(self._loaded(mine)) as loaded:
            for position, pack in loaded:
                self._consumed = position - self.rank + self.world
                self.report.add(pack)
                yield pack
                self._check_live(own)

    def _check_live(self, own: int) -> None:
        if own != self._live:
            raise RuntimeError(
                "this iterator is not live any more: the loader was iterated again, or load_state_dict or seek moved it; "
                "take packs from a new iter(loader)"
            )

    def _loaded(self, mine: Iterator[tuple[int, int, tuple[int, ...]]]) -> Generator[tuple[int, Pack], None, None]:
        if self.workers == 0:
            for position, epoch, draws in mine:
                yield position, self._loading(epoch, position, self._stream.members(epoch, draws))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="eagle-loader") as pool:
            ahead: deque[tuple[int, Future[Pack]]] = deque()
            try:
                while True:
                    while len(ahead) <= self.prefetch:
                        position, epoch, draws = next(mine)
                        members = self._stream.members(epoch, draws)
                        ahead.append((position, pool.submit(self._loading, epoch, position, members)))
                    position, future = ahead.popleft()
                    yield position, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()


__all__ = ["LoadReport", "Pack", "Source", "StatefulLoader", "TileChoice", "by_weight"]
