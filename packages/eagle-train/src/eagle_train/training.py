"""Training of one recipe's stages, one after the other, from exact checkpoints.

Everything that decides the next step (weights, optimiser, position in stages and data, counters) is in the
checkpoint, so a run that is killed anywhere and started again takes the same steps as one that was not. The loss is
normalised over the whole optimiser step: all packs that are accumulated, all ranks. Every rank runs a trainer; only the
first writes.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from eagle_data.collate import collate
from eagle_data.loader import Pack, StatefulLoader
from eagle_parallel import Mesh, global_normaliser, normalise_loss

from eagle_train.checkpoints import list_checkpoints, load_state, load_weights, save_checkpoint
from eagle_train.display import Bar, duration
from eagle_train.engine import Engine, LocalEngine, set_trainable
from eagle_train.errors import CheckpointError, Interrupted, TrainingError
from eagle_train.ranks import sums
from eagle_train.recipe import Recipe, Stage
from eagle_train.schedule import learning_rate
from eagle_train.shares import Share, check_same_samples, model_inputs, readable

Phase = Callable[[str, int, int], AbstractContextManager[Bar]]

_EMPTY_PACKS = 1000
"""Packs in a row without one readable sample after which the data, and not a sample, is taken to be broken."""


@dataclass
class StageProgress:
    """What a stage has done so far; it travels in checkpoints and ends up in the report."""

    steps: int = 0
    tokens: int = 0
    supervised: int = 0
    samples: int = 0
    packs: int = 0
    losses: list[float] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def stage_steps(stage: Stage, loader: StatefulLoader) -> int:
    """Optimiser steps of a stage; epochs are counted in packs of its first epoch, rounded up so that none is left out."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None  # a stage has one of the two
    packs = stage.epochs * loader.packs_in_epoch(0)
    return max(1, math.ceil(packs / (stage.packs_per_step * loader.world) - 1e-9))


class Trainer:
    """Runs the stages of `recipe` on `model`, which it trains in place.

    `make_loader(number)` gives the data of stage `number`, counted over pretraining and stages; `data_digest` names
    the state of that data, so that a resumed run can notice a change. `on_checkpoint` is called after each one. With a
    mesh of several ranks the model's attention must be eagle-parallel's, the loaders must have `shares.tile_choice`, and every
    rank calls the same methods.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        make_loader: Callable[[int], StatefulLoader],
        *,
        tile_size: int,
        mesh: Mesh,
        device: torch.device,
        checkpoints: Path,
        events: Path,
        data_digest: str = "",
        on_checkpoint: Callable[[], object] = lambda: None,
    ):
        self.recipe = recipe
        self.model = model
        self.stages: Sequence[Stage] = (*recipe.pretraining, *recipe.stages)
        self.progress = [StageProgress() for _ in self.stages]
        self.global_step = 0
        self.data_changed = False
        self._make_loader = make_loader
        self._tile_size = tile_size
        self._mesh = mesh
        self._device = device
        self._checkpoints = checkpoints
        self._events = events
        self._data_digest = data_digest
        self._on_checkpoint = on_checkpoint
        self._first = mesh.rank == 0
        self._stop = False
        self._resume: dict[str, Any] | None = None
        self._unused = tuple(model.unused_parameter_names())

    def check(self) -> None:
        """Raise RecipeError now, and not hours later, for a stage that names modules the model does not have."""
        for stage in self.stages:
            set_trainable(self.model, stage.trainable, unused=self._unused)

    def resume(self) -> bool:
        """Load the newest checkpoint, if there is one, and say whether there was.

        Raises CheckpointError where it is damaged or was written by another recipe.
        """
        found = list_checkpoints(self._checkpoints)
        if not found:
            return False
        state = load_state(found[-1])
        names = [stage.name for stage in self.stages]
        if state.get("stages") != names or state.get("seed") != self.recipe.seed:
            raise CheckpointError(
                f"{found[-1]} was written by another recipe (stages {state.get('stages')}, seed {state.get('seed')}), not by "
                f"this one ({names}, seed {self.recipe.seed}); move it away, or start over with --fresh"
            )
        load_weights(found[-1], self.model)
        self.progress = [StageProgress(**values) for values in state["progress"]]
        self.global_step = state["global_step"]
        self.data_changed = state["data"] != self._data_digest
        self._resume = state
        return True

    @property
    def position(self) -> int:
        """Number of the stage that is under way or next; the number of stages when all are done."""
        return self._resume["stage"] if self._resume else 0

    def run(self, phase: Phase) -> None:
        """Train every stage that is not done. `phase(title, total, done)` gives a context with a `Bar`.

        Raises Interrupted after SIGINT or SIGTERM, once the step under way is done and saved; TrainingError where the
        data cannot be loaded or gradients are not finite.
        """
        from torch.utils.tensorboard import SummaryWriter

        purge = self.global_step + 1 if self._resume else None
        writer = SummaryWriter(str(self._events), purge_step=purge) if self._first else nullcontext()
        with writer as events, self._signals():
            for number in range(self.position, len(self.stages)):
                self._run_stage(number, events, phase)
                self._resume = None

    def _run_stage(self, number: int, events: Any, phase: Phase) -> None:
        stage, progress = self.stages[number], self.progress[number]
        loader = self._make_loader(number)
        trained = set_trainable(self.model, stage.trainable, unused=self._unused)
        engine: Engine = LocalEngine(trained, stage, self._mesh)
        # A pack without pictures reaches a tower or connector that is trained alone through a dummy tile, or not at all.
        dummy_tile = not any(name.startswith("language_model.") for name, _ in trained)
        if self._resume is not None and self._resume["loader"] is not None:
            loader.load_state_dict(self._resume["loader"], strict=False)  # data that changed have been told of
            engine.load_state_dict(self._resume["engine"])
        total = stage_steps(stage, loader)
        self.model.train()
        packs = iter(loader)
        meter = _Meter()
        with phase(f"{stage.name} ({stage.context_length} tokens)", total, progress.steps) as bar:
            while progress.steps < total:
                shares = [self._next_share(packs, stage, progress, dummy_tile) for _ in range(stage.packs_per_step)]
                lr = learning_rate(progress.steps, steps=total, peak=stage.lr, warmup=stage.warmup, floor=stage.lr_floor)
                loss, norm = self._step(engine, shares, lr, stage)
                progress.steps += 1
                progress.losses.append(loss)
                self.global_step += 1
                rate = meter.add(sum(share.batch.tokens for share in shares))
                if self._first:
                    for name, value in (("loss", loss), ("lr", lr), ("grad_norm", norm), ("tokens_per_second", rate)):
                        events.add_scalar(f"{stage.name}/{name}", value, self.global_step)
                bar.update(progress.steps, f"loss {loss:.3f}  {rate:,.0f} tokens/s  {self._left(number, total, rate)} left")
                finished = progress.steps == total
                stop = sums((float(self._stop),), self._mesh)[0] > 0  # whichever rank was asked, all stop after the same step
                if self._first and (finished or stop or progress.steps % self.recipe.checkpoints.every_steps == 0):
                    self._save(number + finished, loader, engine, events, finished=finished)
                if stop:
                    raise Interrupted

    def _next_share(self, packs: Iterator[Pack], stage: Stage, progress: StageProgress, dummy_tile: bool) -> Share:
        for _ in range(_EMPTY_PACKS):
            pack, owners = readable(next(packs), self._mesh, self.model.config)
            progress.packs += 1
            progress.failures.extend(failure for failure in pack.failures if failure not in progress.failures)
            if pack.samples:
                batch = collate(
                    pack.samples,
                    tile_size=self._tile_size,
                    weighting=stage.loss_weighting,
                    prompt_weight=stage.prompt_weight,
                    dummy_tile=dummy_tile,
                )
                progress.tokens += batch.tokens
                progress.supervised += len(batch.loss_rows)
                progress.samples += len(pack.samples)
                return Share(batch, owners)
        where, reason = progress.failures[-1]
        raise TrainingError(
            f"stage {stage.name!r}: {_EMPTY_PACKS} packs in a row held no sample that could be loaded; "
            f"the last was {where}: {reason}"
        )

    def _step(self, engine: Engine, shares: Sequence[Share], lr: float, stage: Stage) -> tuple[float, float]:
        """One optimiser step over `shares`; returns the loss (mean over the step's weights) and the gradient norm."""
        check_same_samples([share.batch for share in shares], self._mesh)
        # Each step draws from a generator of its own (dropout), so that a resumed run draws the same.
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.global_step)
        weights = [float(share.batch.loss_weight.sum(dtype="float64")) for share in shares]
        normaliser = global_normaliser(weights, self._mesh, group="dp")
        total = 0.0
        for share in shares:
            inputs = model_inputs(share, self._mesh, self.model.config, self._device)
            loss = normalise_loss(self.model(**inputs, use_cache=False).loss, normaliser, averaged_over=self._mesh.world)
            engine.backward(loss)
            total += float(loss.detach()) / self._mesh.world
        (total,) = sums((total,), self._mesh)
        try:
            return total, engine.step(lr)
        except TrainingError as error:
            raise TrainingError(f"stage {stage.name!r}, step {self.global_step + 1}, loss {total:.4g}: {error}") from error

    def _left(self, number: int, total: int, rate: float) -> str:
        """Time that the stages still need; a lower bound where a later one is counted in epochs of data not yet seen."""
        progress, later = self.progress[number], self.stages[number + 1 :]
        tokens = (total - progress.steps) * progress.tokens / progress.steps
        tokens += sum((stage.steps or 0) * stage.packs_per_step * stage.context_length for stage in later)
        more = "over " if any(stage.steps is None for stage in later) else ""
        return more + duration(tokens / max(rate, 1e-9))

    def _save(self, stage: int, loader: StatefulLoader, engine: Engine, events: Any, *, finished: bool) -> None:
        """Write a checkpoint; `stage` is the one to go on with, which starts anew where the last is `finished`."""
        state = {
            "stages": [stage.name for stage in self.stages],
            "seed": self.recipe.seed,
            "data": self._data_digest,
            "stage": stage,
            "global_step": self.global_step,
            "progress": [asdict(progress) for progress in self.progress],
            "loader": None if finished else loader.state_dict(),
            "engine": None if finished else engine.state_dict(),
        }
        events.flush()
        save_checkpoint(self._checkpoints, self.global_step, self.model, state, keep=self.recipe.checkpoints.keep)
        self._on_checkpoint()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop after the step; a second SIGINT stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone, whose owner then decides what they mean.
            return

        def ask(number: int, frame: Any) -> None:
            if self._stop and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = True

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Meter:
    """Tokens per second over the last 20 steps."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def add(self, tokens: int) -> float:
        now = time.monotonic()
        self._marks = [*self._marks[-19:], (now, self._marks[-1][1] + tokens)]
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - start, 1e-9)


__all__ = ["StageProgress", "Trainer", "stage_steps"]
