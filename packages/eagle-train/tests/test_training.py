"""The trainer on real packs: the loss of an optimiser step, what moves, and going on exactly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle_data.collate import collate
from eagle_data.prepare import DatasetReport
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer
from eagle_data.torch import to_torch
from eagle_parallel import init_mesh
from eagle_train.engine import LocalEngine, set_trainable
from eagle_train.errors import CheckpointError, Interrupted, RecipeError, TrainingError
from eagle_train.recipe import Data, Engine, Model, Recipe, Stage
from eagle_train.schedule import learning_rate
from eagle_train.stage_data import StageData, visual_rules
from eagle_train.training import Trainer, stage_steps

ALL = ("vision_model", "mlp1", "language_model")


class Bench:
    """A prepared data set of texts and pictures, and trainers on it."""

    def __init__(self, folder: Path, annotation: Path, root: Path, toy_folder: Path, load_toy: Callable[[], Any]):
        self.folder, self.annotation, self.root = folder, annotation, root
        self.toy_folder, self.load_toy = toy_folder, load_toy

    def recipe(self, *stages: dict[str, Any], **values: Any) -> Recipe:
        defaults = {"context_length": 128, "steps": 2, "lr": 1e-2, "warmup": 0.0}
        return Recipe(
            name="bench",
            data=Data(datasets={"mixed": DatasetEntry(annotation=self.annotation, root=self.root)}),
            model=Model(path=str(self.toy_folder)),
            engine=Engine(prefetch=0),
            stages=tuple(Stage(**{"name": f"stage-{i}", **defaults, **stage}) for i, stage in enumerate(stages or ({},))),
            **values,
        )

    def data(self, recipe: Recipe) -> StageData:
        from eagle_model import Eagle2_5_VLProcessor

        processor: Any = Eagle2_5_VLProcessor.from_pretrained(self.toy_folder)
        model = self.load_toy()
        data = StageData(recipe, recipe.data.datasets, visual_rules(model.config, recipe.data), self.folder / "prepared")
        data.prepare(PromptTokenizer(processor.tokenizer.backend_tokenizer), quiet)
        return data

    def trainer(self, recipe: Recipe, model: Any, name: str = "a", **options: Any) -> Trainer:
        data = self.data(recipe)
        return Trainer(
            recipe,
            model,
            data.loader,
            tile_size=data.rules.tile_size,
            mesh=init_mesh(),
            device=torch.device("cpu"),
            checkpoints=self.folder / name / "checkpoints",
            events=self.folder / name / "events",
            **options,
        )


class SilentBar:
    """A bar that shows nothing."""

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        pass


@contextmanager
def quiet(title: str, total: int | None, done: int = 0) -> Iterator[Any]:
    """A phase that shows nothing."""
    yield SilentBar()


@pytest.fixture
def bench(tmp_path: Path, toy_folder: Path, load_toy: Any, media: Path, write_lines: Any, talk: Any) -> Bench:
    lines = [talk("<image>\nColour?", "red " * (1 + i % 5), image=("red.png", "wide.jpg")[i % 2]) for i in range(8)]
    lines += [talk("Say it " * i, "blue " * i) for i in range(1, 7)]
    return Bench(tmp_path, write_lines(lines), media, toy_folder, load_toy)


@pytest.mark.parametrize("weighting", ["token", "sqrt_sample", "sqrt_turn"])
def test_packs_that_are_accumulated_make_the_same_step_as_one_pack_of_all_their_samples(bench: Bench, weighting: Any):
    recipe = bench.recipe({"packs_per_step": 2, "steps": 1, "loss_weighting": weighting, "lr": 1e-3, "context_length": 256})
    stage = recipe.stages[0]
    accumulated, together = bench.load_toy().double(), bench.load_toy().double()
    trainer = bench.trainer(recipe, accumulated)
    trainer.run(quiet)

    data = bench.data(recipe)
    packs = list(islice(iter(data.loader(0)), 2))
    sums = [collate(pack.samples, tile_size=32, weighting=weighting).loss_weight.sum() for pack in packs]
    assert abs(sums[0] - sums[1]) > 0.1, "packs of equal weight would not tell a mean of means apart"
    samples = [sample for pack in packs for sample in pack.samples]
    batch = collate(samples, tile_size=data.rules.tile_size, weighting=weighting)
    inputs = to_torch(batch)
    inputs.pop("labels")
    engine = LocalEngine(set_trainable(together, ALL, unused=together.unused_parameter_names()), stage)
    loss = together.train()(**inputs, use_cache=False).loss / batch.loss_weight.sum(dtype="float64")
    engine.backward(loss)
    engine.step(learning_rate(0, steps=1, peak=stage.lr, warmup=stage.warmup, floor=stage.lr_floor))

    assert trainer.progress[0].losses == [pytest.approx(float(loss.detach()), rel=1e-6)]
    for (name, a), b in zip(accumulated.named_parameters(), together.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6), name


def test_a_stage_moves_what_it_trains_and_nothing_else(bench: Bench):
    model = bench.load_toy()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    bench.trainer(bench.recipe({"trainable": ("mlp1",)}), model).run(quiet)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if name.startswith("mlp1.")}


def test_a_stage_that_names_an_unknown_module_is_refused_before_any_step(bench: Bench):
    trainer = bench.trainer(bench.recipe({}, {"trainable": ("mlp2",)}), bench.load_toy())
    with pytest.raises(RecipeError, match="nothing to train under mlp2"):
        trainer.check()


def test_an_epoch_takes_every_sample_also_where_the_last_step_is_not_full(bench: Bench):
    recipe = bench.recipe({"steps": None, "epochs": 1, "packs_per_step": 3})
    data = bench.data(recipe)
    packs = len(data.loader(0).epoch_packs(0))
    assert packs % 3, "the epoch must end within a step"
    assert stage_steps(recipe.stages[0], data.loader(0)) * 3 >= packs
    trainer = bench.trainer(recipe, bench.load_toy())
    trainer.run(quiet)
    counts = data.counts(data.prepare(PromptTokenizer.from_folder(bench.toy_folder), quiet), trainer.progress)
    assert (counts.read, counts.trained, counts.rejected) == (14, 14, 0)


def test_a_stopped_run_goes_on_to_the_bits_of_one_that_was_not(bench: Bench):
    recipe = bench.recipe({"steps": 3}, {"steps": 4, "packs_per_step": 2}, {"steps": 2, "trainable": ("mlp1",)})
    straight = bench.load_toy()
    reference = bench.trainer(recipe, straight, "straight")
    reference.run(quiet)

    for stop in (1, 3, 5, 8):  # within a stage, at the end of one, within the next, in the last
        name = f"stopped-{stop}"
        first = bench.trainer(recipe, bench.load_toy(), name)
        with pytest.raises(Interrupted):
            first.run(stopping_after(stop, first))
        model = bench.load_toy()
        again = bench.trainer(recipe, model, name)
        assert again.resume()
        assert again.global_step == stop
        again.run(quiet)
        assert again.progress == reference.progress
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), straight.parameters(), strict=True)), stop


def stopping_after(step: int, trainer: Trainer) -> Any:
    """A phase that sends SIGINT to this process once the trainer has done `step` steps."""

    @contextmanager
    def phase(title: str, total: int, done: int = 0) -> Iterator[Any]:
        class Bar:
            def update(self, done: int, note: str = "", total: int | None = None) -> None:
                if trainer.global_step == step:
                    os.kill(os.getpid(), signal.SIGINT)

        yield Bar()

    return phase


def test_packs_without_pictures_do_not_stop_a_stage_that_trains_the_connector_alone(bench: Bench, talk: Any):
    bench.annotation.write_text(json.dumps(talk("No picture.", "None.")) + "\n")
    model = bench.load_toy()
    trainer = bench.trainer(bench.recipe({"trainable": ("vision_model", "mlp1")}), model)
    trainer.run(quiet)
    assert trainer.progress[0].steps == 2


def test_signal_handlers_are_put_back(bench: Bench):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    bench.trainer(bench.recipe(), bench.load_toy()).run(quiet)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("change", [{"seed": 5}, {"stages": True}])
def test_a_checkpoint_of_another_recipe_is_refused(bench: Bench, change: dict[str, Any]):
    bench.trainer(bench.recipe(), bench.load_toy()).run(quiet)
    other = bench.recipe({}, {}) if "stages" in change else bench.recipe(**change)
    with pytest.raises(CheckpointError, match="written by another recipe"):
        bench.trainer(other, bench.load_toy()).resume()


def test_data_that_changed_between_two_starts_is_noticed(bench: Bench):
    recipe = bench.recipe()
    bench.trainer(recipe, bench.load_toy(), data_digest="before").run(quiet)
    same = bench.trainer(recipe, bench.load_toy(), data_digest="before")
    other = bench.trainer(recipe, bench.load_toy(), data_digest="after")
    assert same.resume()
    assert not same.data_changed
    assert other.resume()
    assert other.data_changed


def test_the_digest_of_the_data_follows_annotations_and_media(bench: Bench, media: Path):
    recipe = bench.recipe()
    first = bench.data(recipe).digest()
    assert bench.data(recipe).digest() == first
    os.utime(media / "red.png", (1, 1))
    second = bench.data(recipe).digest()
    bench.annotation.write_text(bench.annotation.read_text().replace("Colour", "Color"))
    assert len({first, second, bench.data(recipe).digest()}) == 3


def test_media_that_vanish_after_preparation_are_counted_and_the_rest_is_trained_on(bench: Bench, media: Path):
    recipe = bench.recipe({"steps": None, "epochs": 1})
    trainer = bench.trainer(recipe, bench.load_toy())
    data = bench.data(recipe)
    (media / "wide.jpg").unlink()
    trainer.run(quiet)
    reports = {"mixed": prepared_report(bench)}
    counts = data.counts(reports, trainer.progress)
    assert (counts.read, counts.trained, counts.rejected) == (14, 10, 4)
    assert {reject["where"].rpartition(":")[2] for reject in counts.rejects} == {"2", "4", "6", "8"}
    assert all("wide.jpg" in reject["reason"] for reject in counts.rejects)


def prepared_report(bench: Bench) -> DatasetReport:
    return DatasetReport(**json.loads((bench.folder / "prepared" / "mixed" / "done.json").read_text())["report"])


def test_data_of_which_nothing_can_be_loaded_stops_the_run_with_an_example(tmp_path: Path, bench: Bench, media: Path, talk: Any):
    bench.annotation.write_text(json.dumps(talk("<image>\nColour?", image="red.png")) + "\n")
    recipe = bench.recipe()
    trainer = bench.trainer(recipe, bench.load_toy())
    (media / "red.png").unlink()
    with pytest.raises(TrainingError, match=r"1000 packs in a row .*train.jsonl:\d.*red.png"):
        trainer.run(quiet)


def test_a_stage_into_which_no_sample_fits_is_refused_with_a_reason(bench: Bench):
    recipe = bench.recipe({"context_length": 16})
    with pytest.raises(
        RecipeError, match=r"stage 'stage-0': no prepared sample fits context_length 16.*The first: .*train.jsonl:1"
    ):
        bench.data(recipe).loader(0)


def test_a_diverging_step_names_stage_and_step(bench: Bench):
    model = bench.load_toy()
    with torch.no_grad():
        model.language_model.model.norm.weight.fill_(float("inf"))  # which every token meets, whatever the first pack holds
    with pytest.raises(TrainingError, match="stage 'stage-0', step 1, loss nan"):
        bench.trainer(bench.recipe(), model).run(quiet)
