"""Runs that are killed anywhere and resumed on other numbers of ranks and workers see every sample of an epoch exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.loader import StatefulLoader
from eagle_data.pack_loading import Source

from .made_up_rows import made_up

WORLDS = (1, 2, 3, 4, 6)


def ranks_of(world: int, batch: int | None, workers: int) -> list[StatefulLoader]:
    """A mixture of three sources, one repeated and one drawn from, whose epoch ends within a step."""
    sources = [Source(made_up(90, 60, name="a")), Source(made_up(40, 60, name="b"), 2.0), Source(made_up(61, 60, name="c"), 0.5)]
    options: dict[str, Any] = {"context_length": 128, "max_tiles": 12, "tile_size": 8, "seed": 3, "window_steps": 3, "buffer": 16}
    return [
        StatefulLoader(sources, rank=rank, world=world, global_batch=batch, workers=workers, **options) for rank in range(world)
    ]


def run_with_kills(kills: int, *, fixed_batch: bool, seed: int) -> list[list[tuple[int, str]]]:
    """What was trained on, in the order of the stream: the packs, each `(epoch, where)` of its samples, that a state covers."""
    chance = random.Random(seed)
    done: list[list[tuple[int, str]]] = []
    saved: str | None = None
    for _ in range(kills + 1):
        world = chance.choice(WORLDS)
        batch = 12 if fixed_batch else world * chance.choice((1, 2))
        ranks = ranks_of(world, batch, chance.choice((0, 0, 2)))
        if saved is not None:
            for rank in ranks:
                rank.load_state_dict(json.loads(saved))
        streams = [iter(rank) for rank in ranks]
        taken: list[list[tuple[int, str]]] = []
        saves = chance.randrange(4)
        for _ in range(saves):
            for _ in range(chance.randrange(1, 4)):
                for stream in streams:
                    pack = next(stream)
                    taken.append([(pack.epoch, sample.where) for sample in pack.samples])
            states = {json.dumps(rank.state_dict()) for rank in ranks}
            assert len(states) == 1, "all ranks have the same state"
            saved = states.pop()
            assert len(saved) < 100_000
            done += taken
            taken = []
        for stream in streams:  # some ranks are further than the state when the kill comes
            list(islice(stream, chance.randrange(3)))
            stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    return done


def check_every_sample_once(done: list[list[tuple[int, str]]]) -> int:
    counts: dict[int, Counter[str]] = {}
    for pack in done:
        for epoch, where in pack:
            counts.setdefault(epoch, Counter())[where] += 1
    *complete, last = [counts[epoch] for epoch in sorted(counts)]
    assert sorted(counts) == list(range(len(counts)))
    for found in complete:
        names = {f"a:{row}": 1 for row in range(90)} | {f"b:{row}": 2 for row in range(40)}
        assert {name: found[name] for name in names} == names
        drawn = [name for name in found if name.startswith("c:")]
        assert len(drawn) in (30, 31)  # half of 61, rounded for each epoch
        assert sum(found.values()) == 90 + 80 + len(drawn)
    assert all(count <= 2 for count in last.values())
    return len(complete)


@pytest.mark.parametrize("fixed_batch", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_kills_lose_and_repeat_no_sample(fixed_batch: bool, seed: int):
    done = run_with_kills(200, fixed_batch=fixed_batch, seed=seed)
    assert check_every_sample_once(done) >= 5
    if fixed_batch:
        [straight] = ranks_of(1, 12, 0)
        assert done == [[(p.epoch, s.where) for s in p.samples] for p in islice(straight, len(done))]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_two_thousand_kills_lose_and_repeat_no_sample(seed: int):
    for fixed_batch in (True, False):
        assert check_every_sample_once(run_with_kills(2000, fixed_batch=fixed_batch, seed=seed)) >= 50


def child(folder: Path, world: int, workers: int) -> None:
    """Train for ever: after every turn of all ranks one file, written whole, holds the state and what was seen so far."""
    ranks = ranks_of(world, 12, workers)
    kept = folder / "run.json"
    run = json.loads(kept.read_text()) if kept.exists() else {"state": None, "done": []}
    for rank in ranks:
        if run["state"] is not None:
            rank.load_state_dict(run["state"])
    streams = [iter(rank) for rank in ranks]
    while True:
        for stream in streams:
            pack = next(stream)
            run["done"].append([[pack.epoch, sample.where] for sample in pack.samples])
        run["state"] = ranks[0].state_dict()
        (folder / "run.part").write_text(json.dumps(run))
        os.replace(folder / "run.part", kept)


@pytest.mark.soak
def test_processes_killed_by_the_system_lose_and_repeat_no_sample(tmp_path: Path):
    chance = random.Random(0)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r}); from tests.test_kills import child; "
    for _ in range(20):
        call = f"from pathlib import Path; child(Path({str(tmp_path)!r}), {chance.choice(WORLDS)}, {chance.choice((0, 2))})"
        process = subprocess.Popen([sys.executable, "-c", code + call])
        time.sleep(1.0 + chance.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    done = [[(epoch, where) for epoch, where in pack] for pack in json.loads((tmp_path / "run.json").read_text())["done"]]
    assert check_every_sample_once(done) >= 1


def test_a_changed_batch_gets_steps_of_its_own_from_the_next_window_on():
    [first] = ranks_of(1, 12, 0)
    list(islice(first, 5))
    [second] = ranks_of(1, 7, 0)
    second.load_state_dict(first.state_dict())
    packs = list(islice(second, 500))
    cost = second.plan.cost
    costs = np.array([sum(cost.of(np.array([len(s.input_ids)]), np.array([0]))[0] for s in pack.samples) for pack in packs])
    aligned = costs[35 : 35 + 7 * 60].reshape(-1, 7)
    shifted = costs[38 : 38 + 7 * 60].reshape(-1, 7)
    spread = [np.mean(steps.max(1) / steps.mean(1)) for steps in (aligned, shifted)]
    assert spread[0] < spread[1]
