"""A run on disk: which files a run folder holds, who may work in it, and what counts as finished.

`runs/<name>/` is a run folder from the moment it holds `run.json` (time and memory so far). One process works in it at
a time. Files appear whole or not at all. What the phases write inside is theirs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from eagle_train.errors import RecipeError, RunError

_OWN = (
    *("recipe.yaml", "run.json", "report.html", "report.json"),
    *("corpus", "start", "prepared", "checkpoints", "checkpoint-final", "events"),
)


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a later start, finds all of it or the file as it was."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class RunFolder:
    """The files of one run. `path` is kept as given, so that messages show what the user typed."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.record = path / "run.json"
        self.corpus = path / "corpus"
        self.start = path / "start"
        self.prepared = path / "prepared"
        self.checkpoints = path / "checkpoints"
        self.final = path / "checkpoint-final"
        self.events = path / "events"
        self.report_html = path / "report.html"
        self.report_json = path / "report.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs; the lock dies with the process.

        Raises RunError where another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RecipeError(f"{self.path} cannot be a run folder: {error.strerror}; choose another run_dir or name") from error
        with (self.path / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is working in {self.path}; wait for it, or give this run a name of its own with name=…"
                ) from None
            yield

    def open(self, resolved: str, *, fresh: bool) -> bool:
        """Make or reopen the folder for the recipe `resolved`; whether anything is left to do. Call it while `held`.

        `fresh` first removes the files of an earlier run, and nothing else. Raises RecipeError where the folder holds
        something that is no run, or a run of another recipe.
        """
        if not self.record.is_file():
            foreign = sorted(item.name for item in self.path.iterdir() if item.name not in {".lock", "run.json.part"})
            if foreign:
                raise RecipeError(
                    f"{self.path} is not empty and not a run folder (it has {', '.join(foreign[:3])}, but no run.json); "
                    "choose another run_dir or name"
                )
        elif fresh:
            self._clear()
        elif self.recipe.is_file() and self.recipe.read_text(encoding="utf-8") != resolved:
            differences = _differences(yaml.safe_load(self.recipe.read_text(encoding="utf-8")), yaml.safe_load(resolved))
            raise RecipeError(
                f"{self.path} holds a run of another recipe ({'; '.join(differences[:3])}); "
                "add --fresh to start it over, or name=… for a folder of its own"
            )
        if not self.record.is_file():
            self.note(0.0, 0.0)
        if not self.recipe.is_file():
            write_whole(self.recipe, resolved)
        return not self.report_json.is_file()

    def so_far(self) -> tuple[float, float]:
        """Seconds worked and peak memory in GiB over all starts of this run."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return float(record["seconds"]), float(record["peak_rss_gib"])

    def note(self, seconds: float, peak_rss_gib: float) -> None:
        """Remember time and memory for the next start."""
        write_whole(self.record, json.dumps({"seconds": seconds, "peak_rss_gib": peak_rss_gib}))

    def _clear(self) -> None:
        """Remove what runs write. The report goes first: a folder that is half cleared must not look finished."""
        for name in ("report.json", *_OWN):
            if name == "run.json":
                continue  # last, below: without it a half-cleared folder would be taken for somebody else's
            for path in (self.path / name, self.path / f"{name}.part"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self.record.unlink()


def _differences(kept: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two resolved recipes differ, as `key: there / here`."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys((*kept, *wanted))
        return [line for key in keys for line in _differences(kept.get(key), wanted.get(key), f"{at}.{key}" if at else str(key))]
    if isinstance(kept, list) and isinstance(wanted, list) and len(kept) == len(wanted):
        pairs = enumerate(zip(kept, wanted, strict=True))
        return [line for number, (old, new) in pairs for line in _differences(old, new, f"{at}.{number}")]
    if kept == wanted:
        return []
    return [f"{at}: {_short(kept)} there, {_short(wanted)} here"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


__all__ = ["RunFolder", "write_whole"]
