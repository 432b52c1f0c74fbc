"""Candidates to a selection: find the videos, cut and embed their clips, and say which are unlike the existing set.

A video that cannot be read, or a clip that shows nothing, becomes a reject with its reason and stops nothing. Vectors are
kept in the result folder, one file a video, and used again while video, embedder and cutting are the same. No endpoint is
asked here.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagle_data.curate.clips import Clip, cut, fingerprint, frames_of, moments
from eagle_data.curate.diversity import novel
from eagle_data.curate.embedding import Embedder, load_embedder, pooled
from eagle_data.curate.recipe import ClipCutting, CurateRecipe
from eagle_data.errors import EagleDataError, MediaError
from eagle_data.video import open_video

__all__ = ["KEPT", "Chosen", "Rejected", "Selection", "collect", "find_videos", "write_kept"]

KEPT = "kept.npz"
"""File in a result folder: the vectors of the clips that were kept, for later runs to differ from."""

_FORM = 1
_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif"}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rejected:
    """A video, clip or question that is left out: which one, and why with the mend."""

    where: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """The rule's word on one clip: kept or not, its largest cosine and the clip that has it (empty: there was none)."""

    clip: Clip
    kept: bool
    largest: float
    nearest: str


@dataclass(frozen=True, eq=False)
class Selection:
    """What `collect` found.

    Attributes:
        clips: every clip, video by video in order of time.
        vectors: float32 ``[len(clips), dim]``.
        rejects: videos and clips that could not be looked at.
        existing: clips of the existing set.
        embedder: its name.
        durations: seconds of every candidate video that could be opened, by its name.
    """

    clips: tuple[Chosen, ...]
    vectors: np.ndarray
    rejects: tuple[Rejected, ...]
    existing: int
    embedder: str
    durations: dict[str, float]

    @property
    def kept(self) -> list[Clip]:
        """The clips that are new."""
        return [chosen.clip for chosen in self.clips if chosen.kept]


@dataclass(frozen=True, eq=False)
class _Embedded:
    clips: list[Clip]
    vectors: np.ndarray
    rejects: list[Rejected]
    durations: dict[str, float]


def find_videos(patterns: Sequence[str]) -> list[Path]:
    """The files that `patterns` name, each once, in the order of patterns and names.

    A pattern is a file, a folder (all its videos, also deeper ones) or a glob pattern. Raises EagleDataError for one that
    names none.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = [file for name in sorted(glob.glob(pattern, recursive=True)) if (file := Path(name)).is_file()]
        if not files:
            raise EagleDataError(f"{pattern}: names no video; give a file, a folder or a pattern such as 'talks/*.mp4'.")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def collect(recipe: CurateRecipe, out: Path, progress: Progress | None = None) -> Selection:
    """Embed candidates and existing set and apply the diversity rule; vectors are kept below `out`.

    Raises EagleDataError for a pattern without videos, a candidate outside the root, or an earlier run of another embedder.
    """
    embedder = load_embedder(recipe.diversity.embedder, recipe.diversity.options)
    names = {path: _name(path, recipe.root) for path in find_videos(recipe.videos)}
    others = {path: str(path) for path in find_videos(recipe.existing_videos)}
    cache = out / "embeddings"
    cache.mkdir(parents=True, exist_ok=True)
    there = _gather(others.items(), "existing", embedder, recipe.clips, cache, progress)
    existing_names, existing = [clip.id for clip in there.clips], [there.vectors]
    for folder in recipe.existing_runs:
        ids, vectors = _read_kept(folder, embedder)
        existing_names += ids
        existing.append(vectors)
    new = _gather(names.items(), "clips", embedder, recipe.clips, cache, progress)
    if not new.clips:
        reason = new.rejects[0].reason if new.rejects else "there is none"
        raise EagleDataError(f"no clip of {len(names)} videos can be used; the first reason: {reason}")
    filled = [vectors for vectors in existing if len(vectors)]
    dim = new.vectors.shape[1]
    known = np.concatenate(filled) if filled else np.empty((0, dim), np.float32)
    result = novel(new.vectors, known, recipe.diversity.threshold, recipe.diversity.within)
    labels = [*existing_names, *(clip.id for clip in new.clips)]
    chosen = tuple(
        Chosen(clip, bool(kept), round(float(largest), 6), labels[nearest] if nearest >= 0 else "")
        for clip, kept, largest, nearest in zip(new.clips, result.kept, result.largest, result.nearest.tolist(), strict=True)
    )
    rejects = (*there.rejects, *new.rejects)
    return Selection(chosen, new.vectors, rejects, len(known), embedder.name, new.durations)


def write_kept(selection: Selection, out: Path) -> None:
    """Write `KEPT`, which a later recipe's `existing_runs` reads."""
    mask = np.array([chosen.kept for chosen in selection.clips], bool)
    _write_npz(
        out / KEPT,
        vectors=selection.vectors[mask],
        facts=json.dumps({"embedder": selection.embedder, "ids": [clip.id for clip in selection.kept]}),
    )


def _read_kept(folder: Path, embedder: Embedder) -> tuple[list[str], np.ndarray]:
    path = folder / KEPT
    try:
        with np.load(path) as stored:
            vectors, facts = stored["vectors"], json.loads(str(stored["facts"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        mend = "name the --out folder of a finished eagle-data curate"
        raise EagleDataError(f"{path}: cannot be read ({error}); {mend}.") from error
    if facts["embedder"] != embedder.name:
        raise EagleDataError(
            f"{folder}: its vectors are of the embedder {facts['embedder']}, this run's are of {embedder.name}; "
            "they cannot be compared: use the same one, or name its videos in existing_videos."
        )
    return facts["ids"], vectors


def _gather(
    videos: Iterable[tuple[Path, str]],
    label: str,
    embedder: Embedder,
    cutting: ClipCutting,
    cache: Path,
    progress: Progress | None,
) -> _Embedded:
    videos = list(videos)
    durations: dict[str, float] = {}
    clips: list[Clip] = []
    rejects: list[Rejected] = []
    vectors: list[np.ndarray] = []
    for number, (path, name) in enumerate(videos, 1):
        try:
            one = _embed_video(path, name, embedder, cutting, cache)
        except (MediaError, OSError) as error:
            rejects.append(Rejected(name, str(error)))
        else:
            clips += one.clips
            rejects += one.rejects
            durations |= one.durations
            vectors += [one.vectors] if len(one.clips) else []
        if progress is not None:
            progress(label, number, len(videos))
    return _Embedded(clips, np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32), rejects, durations)


def _embed_video(path: Path, name: str, embedder: Embedder, cutting: ClipCutting, cache: Path) -> _Embedded:
    """The clips of one video, from the cache where it has them."""
    facts = json.dumps([_FORM, name, os.path.realpath(path), fingerprint(path), embedder.name, cutting.model_dump()])
    stored = cache / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npz"
    if stored.is_file():
        try:
            with np.load(stored) as old:
                rejects = [Rejected(**reject) for reject in json.loads(str(old["rejects"]))]
                spans, seconds = old["spans"].tolist(), {name: float(old["duration"])}
                return _Embedded([Clip(name, start, end) for start, end in spans], old["vectors"], rejects, seconds)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # half written by another program, or damaged: made anew below
    clips: list[Clip] = []
    rejects: list[Rejected] = []
    vectors: list[np.ndarray] = []
    with open_video(path) as video:
        duration = video.metadata.duration
        size = embedder.picture_size(video.metadata.width, video.metadata.height)
        for start, end in cut(duration, cutting.seconds, cutting.shortest):
            clip = Clip(name, start, end)
            try:
                frames = frames_of(video, moments(start, end, cutting.fps, 1 << 16), size)
                vectors.append(pooled(embedder(frames)))
            except EagleDataError as error:
                rejects.append(Rejected(clip.id, str(error)))
            else:
                clips.append(clip)
    made = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
    spans = np.array([(clip.start, clip.end) for clip in clips], np.float64).reshape(-1, 2)
    plain: list[dict[str, Any]] = [{"where": reject.where, "reason": reject.reason} for reject in rejects]
    _write_npz(stored, spans=spans, vectors=made, rejects=json.dumps(plain), duration=duration)
    return _Embedded(clips, made, rejects, {name: duration})


def _write_npz(path: Path, **arrays: Any) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def _name(path: Path, root: Path) -> str:
    """A video's path relative to the root, with slashes: what annotations will say."""
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if relative == ".." or relative.startswith("../"):
        raise EagleDataError(f"{path}: lies outside the root {root}; set root to a folder that holds every candidate video.")
    return Path(relative).as_posix()
