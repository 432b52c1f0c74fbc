"""The recipe of a whole run: data, model, stages, parallel layout, engine, evaluation. Frozen pydantic values.

An unknown key is an error that names its nearest neighbour. Reading files, built-in recipes and `key=value`
overrides is `eagle_train.recipe_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eagle_data.dialect import DIALECTS
from eagle_data.fetch import Fetch
from eagle_data.recipe import DatasetEntry
from eagle_data.strict import Strict
from pydantic import Field, field_validator, model_validator

from eagle_train.digits import DigitsCorpus
from eagle_train.toy_model import ToyModel


class FetchLeave(Strict):
    """Leave to fetch media at http(s) addresses while preparing and training, and its bounds.

    `hosts` are the only hosts that are asked, redirects included; every host where they are left out. At most `max_mib` MiB
    are fetched of one address, within `seconds` (of a video: each range of it).
    """

    hosts: tuple[str, ...] | None = Field(default=None, min_length=1)
    max_mib: int = Field(default=256, ge=1)
    seconds: float = Field(default=30.0, gt=0)

    def bounds(self) -> Fetch:
        """The same as eagle-data takes it."""
        return Fetch(max_bytes=self.max_mib << 20, seconds=self.seconds, hosts=self.hosts)


class Data(Strict):
    """Where the samples come from: a data recipe file, datasets written out here, or a corpus to build first.

    `fps`, `min_frames` and `max_tiles` are the limits of degradation sampling (frames a second, frames, tiles an
    image); `max_tiles` is read from the checkpoint where it is not given. `verify` decodes every picture once while
    preparing. `fetch` is leave to fetch media at http(s) addresses; without it their samples are rejected.
    `prepare_workers` processes prepare (0: the run's own); one a core, where there is work for more than one, when it is
    not given. What is prepared does not depend on it.
    """

    recipe: Path | None = None
    datasets: dict[str, DatasetEntry] = Field(default_factory=dict)
    corpus: DigitsCorpus | None = None
    dialect: str = "released"
    fps: float = Field(default=2.0, gt=0)
    min_frames: int = Field(default=8, ge=1)
    max_tiles: int | None = Field(default=None, ge=1)
    verify: bool = False
    fetch: FetchLeave | None = None
    prepare_workers: int | None = Field(default=None, ge=0)

    @field_validator("dialect")
    @classmethod
    def _known_dialect(cls, name: str) -> str:
        if name not in DIALECTS:
            raise ValueError(f"unknown prompt dialect {name!r}; choose one of {', '.join(DIALECTS)}")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        given = [name for name in ("recipe", "datasets", "corpus") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"data needs exactly one of recipe, datasets or corpus, not {' and '.join(given) or 'none'}")
        return self


class Model(Strict):
    """The model to start from: a checkpoint folder or hub name (`path`), or a toy built from scratch (`toy`)."""

    path: str | None = None
    toy: ToyModel | None = None
    attention: str = "packed_sdpa"
    kernels: bool = True

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        if (self.path is None) == (self.toy is None):
            raise ValueError("model needs exactly one of path (a checkpoint) or toy (sizes of a model built from scratch)")
        return self


class TowerPretraining(Strict):
    """The toy tower's own pretraining: steps of `batch` freshly drawn digits at peak rate `lr` (linear decay)."""

    steps: int = Field(default=400, ge=0)
    batch: int = Field(default=64, ge=1)
    lr: float = Field(default=1.5e-3, gt=0)


class Stage(Strict):
    """One stage of training.

    `datasets` names the datasets of the recipe that are mixed, all of them where it is empty; a dataset may be scaled
    with `repeat`. `trainable` lists module prefixes (`vision_model`, `mlp1`, `language_model`); the rest is frozen.
    `packs_per_step` packs of `context_length` tokens are accumulated before each optimiser step. Its length is
    `steps`, or `epochs` passes over its data. `prompt_weight` above 0 also learns the text that is not an answer, as
    pretraining does.
    """

    name: str
    context_length: int = Field(ge=16)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    datasets: tuple[str, ...] = ()
    repeat: dict[str, float] = Field(default_factory=dict)
    trainable: tuple[str, ...] = ("vision_model", "mlp1", "language_model")
    packs_per_step: int = Field(default=1, ge=1)
    max_tiles_per_pack: int | None = Field(default=None, ge=1)
    lr: float = Field(default=2e-5, gt=0)
    warmup: float = Field(default=0.03, ge=0, le=1)
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    prompt_weight: float = Field(default=0.0, ge=0)
    loss_weighting: Literal["token", "sqrt_sample", "sqrt_turn"] = "sqrt_sample"

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"stage {self.name!r} needs exactly one of steps or epochs")
        return self


class Parallel(Strict):
    """Context parallelism: `cp` ranks share each pack, `ulysses` of them by heads; attention is then eagle-parallel's."""

    cp: int = Field(default=1, ge=1)
    ulysses: int = Field(default=1, ge=1)


class Engine(Strict):
    """How steps run. `dtype` of parameters and computation; `threads` of the CPU (fixed, so that runs repeat)."""

    kind: Literal["local", "deepspeed"] = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = Field(default=None, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 2
    gradient_checkpointing: bool = False
    prefetch: int = Field(default=2, ge=0)


class Checkpointing(Strict):
    """A checkpoint every `every_steps` optimiser steps of a stage, and at its end; the newest `keep` are kept."""

    every_steps: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1)


class Evaluation(Strict):
    """Held-out questions (JSONL per task) answered by generation; exact match after stripping white space.

    `root` is joined to relative media paths; without it they lie in the recipe's folder. `noise` also answers the
    questions with every picture replaced by noise. `pictures` are shown in the report.
    """

    sets: dict[str, Path] = Field(default_factory=dict)
    root: Path | None = None
    max_new_tokens: int = Field(default=16, ge=1)
    batch: int = Field(default=32, ge=1)
    noise: bool = False
    pictures: int = Field(default=12, ge=0)


class Recipe(Strict):
    """A whole run. Its folder is `runs/<name>` unless `run_dir` says otherwise."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = 0
    run_dir: Path | None = None
    data: Data
    model: Model
    tower_pretraining: TowerPretraining | None = None
    pretraining: tuple[Stage, ...] = ()
    stages: tuple[Stage, ...] = Field(min_length=1)
    parallel: Parallel = Parallel()
    engine: Engine = Engine()
    checkpoints: Checkpointing = Checkpointing()
    evaluation: Evaluation = Evaluation()

    @property
    def folder(self) -> Path:
        return self.run_dir or Path("runs") / self.name

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        names = [stage.name for stage in (*self.pretraining, *self.stages)]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, but they are {', '.join(names)}")
        if self.tower_pretraining is not None and self.model.toy is None:
            raise ValueError("tower_pretraining is for a toy model only; a checkpoint brings its own tower")
        return self
