"""What can be said against a recipe before anything is written: parts that are missing here, and parts not built yet.

All problems are reported at once; `refused_addresses` only cost samples, and are told before those are prepared. Whether a
recipe is well formed at all is `eagle_train.recipe`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from eagle_data.annotation_files import chunks, records
from eagle_data.annotations import Reject, read_record
from eagle_data.errors import MediaError
from eagle_data.fetch import Fetch, allowed, is_address
from eagle_data.recipe import DatasetEntry

from eagle_train.errors import RecipeError
from eagle_train.recipe import Data, Recipe


def check(recipe: Recipe) -> None:
    """Raise RecipeError that lists everything this machine or this version cannot give."""
    problems = [*_missing_files(recipe), *_not_built(recipe), *_device(recipe)]
    if problems:
        raise RecipeError(f"recipe {recipe.name!r} cannot run:\n  " + "\n  ".join(problems))


def refused_addresses(entries: Mapping[str, DatasetEntry], data: Data) -> Iterator[str]:
    """A line for each dataset that names media at an address which `data.fetch` does not allow, with the mend.

    Looks at the first group of a dataset's records, at most 128 of them, and at no medium. Files that cannot be read are passed
    over: preparation names them.
    """
    leave = data.fetch.bounds() if data.fetch is not None else None
    for name, entry in entries.items():
        for where, address in _addresses(name, entry):
            mend = _mend(address, leave)
            if mend:
                yield f"dataset {name!r} names media at addresses ({where}: {address}); their samples will be rejected: {mend}"
                break


def _addresses(name: str, entry: DatasetEntry) -> Iterator[tuple[str, str]]:
    """Addresses among the media of a dataset's first group of records, with where they stand."""
    try:
        for chunk in islice(chunks(entry.annotation), 1):
            for number, record in records(chunk):
                sample = read_record(record, dataset=name, where=f"{chunk.file}:{number}", root=entry.root)
                if not isinstance(sample, Reject):
                    media = (*sample.images, *sample.videos, *sample.documents)
                    yield from ((sample.where, medium.path) for medium in media if is_address(medium.path))
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return


def _mend(address: str, leave: Fetch | None) -> str:
    """What would allow `address` to be fetched; empty where it is allowed."""
    try:
        allowed(address, leave)
    except MediaError:
        try:
            host = urlsplit(address).hostname
        except ValueError:
            host = None
        if not host:
            return "correct the address"
        if leave is None:
            return f"give leave to fetch them with data.fetch={{hosts: [{host}]}}, or fetch them first"
        return f"add the host {host} to data.fetch.hosts, or fetch them first"
    return ""


def _missing_files(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.recipe is not None and not data.recipe.is_file():
        yield (
            f"data.recipe: there is no file {data.recipe}; name your data recipe with data.recipe=FILE "
            '(JSON: {"my-set": {"annotation": "train.jsonl", "root": "media"}})'
        )
    for name, entry in data.datasets.items():
        if not entry.annotation.exists():
            yield f"data.datasets.{name}.annotation: there is no file {entry.annotation}; correct the path"
    if data.datasets:
        for stage in (*recipe.pretraining, *recipe.stages):
            for name in dict.fromkeys((*stage.datasets, *stage.repeat)):
                if name not in data.datasets:
                    yield f"stage {stage.name!r}: there is no dataset {name!r}; the data has {', '.join(data.datasets)}"
    for task, path in recipe.evaluation.sets.items():
        if task == "overall":
            yield "evaluation.sets: 'overall' is the name of the total; call the set something else"
        if not path.is_file():
            yield f"evaluation.sets.{task}: there is no file {path}; correct the path, or leave the set out"
    path = recipe.model.path
    if path is not None and not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "~", "/"))):
        yield f"model.path: {path} is no checkpoint folder (and not of the form owner/name, which a model hub would know)"


def _not_built(recipe: Recipe) -> Iterator[str]:
    if recipe.engine.kind == "deepspeed":
        yield (
            "engine.kind: the DeepSpeed engine is not built yet; use engine.kind=local "
            "(one process; model, gradients and optimiser state must fit one device)"
        )
    parallel = recipe.parallel
    if parallel.cp % parallel.ulysses:
        fits = ", ".join(str(size) for size in range(1, parallel.cp + 1) if parallel.cp % size == 0)
        yield f"parallel.ulysses: {parallel.ulysses} does not divide parallel.cp={parallel.cp}; use one of {fits}"
    world = os.environ.get("WORLD_SIZE") or "1"
    if world not in ("1", str(parallel.cp)):
        yield (
            f"WORLD_SIZE is {world}, but this recipe trains with {parallel.cp} (parallel.cp); data-parallel ranks are not built "
            f"yet: start {parallel.cp}, or set parallel.cp={world}"
        )


def _device(recipe: Recipe) -> Iterator[str]:
    if recipe.engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            yield "engine.device: there is no CUDA device here; use engine.device=cpu (or auto), or a machine that has one"


__all__ = ["check", "refused_addresses"]
