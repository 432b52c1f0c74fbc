"""The data of a run: recipe entries to prepared datasets, to one loader per stage, to counts of what became of every sample.

Everything about samples is eagle-data's; here it is chosen which datasets and lengths each stage takes. A stage's
order depends on the recipe's seed and the stage's number alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eagle_data.ads import VisualRules
from eagle_data.annotation_files import count_records
from eagle_data.dialect import get_dialect
from eagle_data.loader import Source, StatefulLoader, TileChoice
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepared import PreparedDataset
from eagle_data.recipe import DatasetEntry, load_data_recipe
from eagle_data.tokens import PromptTokenizer

from eagle_train.digits import build_corpus
from eagle_train.display import Bar
from eagle_train.errors import RecipeError
from eagle_train.recipe import Data, Recipe, Stage
from eagle_train.run_folder import RunFolder
from eagle_train.training import StageProgress

Phase = Callable[[str, int | None], AbstractContextManager[Bar]]

RECORDS_A_WORKER = 1024
"""Records that are worth a process to prepare them: to start one takes as long as to prepare a few hundred."""

REJECTS_LISTED = 100
"""Rejected samples that the report lists; `prepared/rejects.jsonl` has all that preparation found."""


@dataclass(frozen=True)
class SampleCounts:
    """Distinct samples `read`, `trained` on, `rejected` and `degraded` (of those trained), and the first rejects.

    `rejects` are `{"where": "file:line", "reason": …}`.
    """

    read: int
    trained: int
    rejected: int
    degraded: int
    rejects: tuple[dict[str, str], ...]


def find_datasets(recipe: Recipe, folder: RunFolder, phase: Phase) -> dict[str, DatasetEntry]:
    """The recipe's datasets by name, building the corpus first where the recipe has one.

    Raises RecipeError for a data recipe that cannot be read and for a stage that names a dataset which is not there.
    """
    data = recipe.data
    if data.corpus is not None:
        with phase("corpus", 1) as bar:
            build_corpus(
                folder.corpus,
                data.corpus,
                seed=recipe.seed,
                tokens_per_tile=recipe.model.toy.tokens_per_tile if recipe.model.toy else 1,
                progress=lambda done, total: bar.update(done, "samples", total),
            )
    path = folder.corpus / "recipe.json" if data.corpus is not None else data.recipe
    try:
        entries = load_data_recipe(path) if path is not None else dict(data.datasets)
    except ValueError as error:
        raise RecipeError(f"data.recipe: {error}") from error
    for stage in (*recipe.pretraining, *recipe.stages):
        for name in dict.fromkeys((*stage.datasets, *stage.repeat)):
            if name not in entries:
                raise RecipeError(f"stage {stage.name!r}: there is no dataset {name!r}; the data has {', '.join(entries)}")
    for name, entry in entries.items():
        if not entry.annotation.exists():
            raise RecipeError(
                f"dataset {name!r}: there is no annotation file or folder {entry.annotation}; correct the data recipe"
            )
    return entries


def visual_rules(config: Any, data: Data) -> VisualRules:
    """The limits of preparation: sizes and tile limits of the model's config, frames and dialect of the recipe."""
    return VisualRules(
        tile_size=config.tile_size,
        tokens_per_tile=config.num_image_token,
        max_tiles=data.max_tiles or config.max_dynamic_tiles,
        min_tiles=config.min_dynamic_tiles,
        use_thumbnail=config.use_thumbnail,
        fps=data.fps,
        min_frames=data.min_frames,
        dialect=get_dialect(data.dialect),
    )


class StageData:
    """The prepared data of one run, stage by stage."""

    def __init__(self, recipe: Recipe, entries: Mapping[str, DatasetEntry], rules: VisualRules, prepared: Path):
        self.recipe = recipe
        self.rules = rules
        self.stages: Sequence[Stage] = (*recipe.pretraining, *recipe.stages)
        lengths: dict[str, set[int]] = {}
        for stage in self.stages:
            for name in stage.datasets or entries:
                lengths.setdefault(name, set()).add(stage.context_length)
        self._lengths = lengths
        self._entries = {name: entry for name, entry in entries.items() if name in lengths}
        self._prepared = prepared
        self._fetch = recipe.data.fetch.bounds() if recipe.data.fetch is not None else None

    def prepare(self, tokenizer: PromptTokenizer, phase: Phase) -> dict[str, DatasetReport]:
        """Plan and tokenise every sample for the stages that take it; nothing is done twice.

        Raises RecipeError for a folder that holds no dataset and for files of annotations that cannot be read.
        """
        data = self.recipe.data
        totals = {name: _count(name, entry.annotation) for name, entry in self._entries.items()}
        known = [count for count in totals.values() if count is not None]
        total = sum(known) if len(known) == len(totals) else None
        with phase("preparation", total) as bar:
            counts = dict.fromkeys(totals, 0)

            def progress(name: str, done: int) -> None:
                counts[name] = done
                bar.update(sum(counts.values()), name)

            return prepare(
                self._entries,
                self._prepared,
                context_lengths={name: sorted(values) for name, values in self._lengths.items()},
                rules=self.rules,
                tokenizer=tokenizer,
                verify=data.verify,
                fetch=self._fetch,
                progress=progress,
                workers=_workers(total) if data.prepare_workers is None else data.prepare_workers,
            )

    def digest(self) -> str:
        """Changes when the prepared data do, annotations and media included."""
        digest = hashlib.sha256()
        for name in sorted(self._entries):
            digest.update((self._prepared / name / "done.json").read_bytes())
        return digest.hexdigest()

    def loader(self, number: int, load: TileChoice | None = None) -> StatefulLoader:
        """Packs of stage `number`, counted over pretraining and stages; RecipeError where no sample fits it.

        `load` chooses the tiles to decode, as of `StatefulLoader`; all of them when None.
        """
        stage = self.stages[number]
        sources = []
        for name in stage.datasets or self._entries:
            entry = self._entries[name]
            dataset = PreparedDataset(self._prepared / name, stage.context_length, name=name, fetch=self._fetch)
            repeat = entry.repeat_time * entry.weight * stage.repeat.get(name, 1.0)
            sources.append(Source(dataset, repeat, entry.data_augment))
        try:
            return StatefulLoader(
                sources,
                context_length=stage.context_length,
                tile_size=self.rules.tile_size,
                seed=self.recipe.seed * 1000 + number,
                max_tiles=stage.max_tiles_per_pack,
                use_thumbnail=self.rules.use_thumbnail,
                workers=self.recipe.engine.prefetch,
                # Ranks that share a pack decode other tiles of it and could not agree on a stand-in: all leave a bad sample out.
                bad_media="leave_out",
                load=load,
            )
        except ValueError as error:
            raise RecipeError(f"stage {stage.name!r}: {error}{self._first_reject()}") from error

    def counts(self, reports: Mapping[str, DatasetReport], progress: Sequence[StageProgress]) -> SampleCounts:
        """What became of the samples, over all stages."""
        trained: set[str] = set()
        degraded: set[str] = set()
        failures: dict[str, str] = {}
        for number, stage in enumerate(progress):
            failures.update(stage.failures)
            if stage.packs:
                seen, gave_up = self.loader(number).members(stage.packs)
                trained |= seen
                degraded |= gave_up
        trained -= failures.keys()
        rejects = [*self._rejects(), *({"where": where, "reason": failures[where]} for where in sorted(failures))]
        return SampleCounts(
            read=sum(report.read for report in reports.values()),
            trained=len(trained),
            rejected=sum(report.rejected for report in reports.values()) + len(failures),
            degraded=len(degraded & trained),
            rejects=tuple(rejects[:REJECTS_LISTED]),
        )

    def _rejects(self) -> list[dict[str, str]]:
        with (self._prepared / "rejects.jsonl").open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in islice(lines, REJECTS_LISTED)]
        return [{"where": record["where"], "reason": record["reason"]} for record in records]

    def _first_reject(self) -> str:
        rejects = self._rejects()
        return f". The first: {rejects[0]['where']}: {rejects[0]['reason']}" if rejects else ""


def _count(name: str, annotation: Path) -> int | None:
    try:
        return count_records(annotation)
    except (OSError, ValueError) as error:
        raise RecipeError(f"dataset {name!r}: {error}; correct the data recipe") from error


def _workers(records: int | None) -> int:
    """Processes that prepare so many records: one a core, fewer where there is little to do, none but this one for a few."""
    cores = len(os.sched_getaffinity(0))
    workers = cores if records is None else min(cores, records // RECORDS_A_WORKER)
    return workers if workers > 1 else 0


__all__ = ["SampleCounts", "StageData", "find_datasets", "visual_rules"]
