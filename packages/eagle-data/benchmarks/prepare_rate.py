"""How many annotation lines a second preparation takes, with how many workers, in how much memory, and what a second run costs.

    python packages/eagle-data/benchmarks/prepare_rate.py --out FILE.json --commit SHA [--lines 100000] [--tokenizer FOLDER]

The corpus is made first and kept in `--corpus`: real JPEG files and H.264 clips that lines draw from, and lines as fine-tuning
mixes have them (34 % text, 57 % one image, 5 % several, 4 % a clip). Every case runs in a fresh process, whose start and imports
are not in the seconds; workers' starts are. Memory is the resident set of the process and its children together, at its highest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401  # with the imports, which are not in the seconds
from ads_corpus import WORDS, load_tokenizer
from data_bench.record import Record, head_of
from eagle_data import __version__, group_engines
from eagle_data.ads import VisualRules
from eagle_data.prepare import prepare
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer

CONTEXTS = (8192, 32768)
IMAGES, CLIPS = 2000, 40


def make_media(folder: Path) -> None:
    """JPEGs of 200 to 1600 px a side, and clips of 10 to 60 s."""
    import av
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    for number in range(IMAGES):
        width, height = (int(side) for side in rng.integers(200, 1600, 2))
        noise.resize((width, height)).save(folder / f"{number}.jpg", quality=60)
    for number in range(CLIPS):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "50"})
            stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
            for at in range(int(rng.integers(250, 1500))):
                pixels = np.full((96, 160, 3), at % 256, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())


def line(rng: np.random.Generator, number: int) -> str:
    """One record; no two have the same question."""
    words = rng.choice(WORDS, max(4, int(rng.lognormal(np.log(40), 1)))).tolist()
    kind, record = rng.random(), {}
    if kind >= 0.34:
        count = 1 if kind < 0.91 else int(rng.integers(2, 6))
        record["image"] = [f"{int(n)}.jpg" for n in rng.integers(0, IMAGES, count)]
    if kind >= 0.96:
        record = {"video": f"{int(rng.integers(0, CLIPS))}.mp4"}
    question, answer = f"{number}: {' '.join(words)}", " ".join(words[: len(words) // 3 + 1])
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return json.dumps({**record, "conversations": turns}) + "\n"


def write_lines(path: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line(rng, number) for number in range(count))


def edit(path: Path, share: float, *, scattered: bool) -> None:
    """Change a share of the lines: neighbours in the middle, or every so many."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    count = int(len(lines) * share)
    chosen = range(0, len(lines), len(lines) // count) if scattered else range(len(lines) // 2, len(lines) // 2 + count)
    for at in chosen:
        lines[at] = line(np.random.default_rng(10**6 + at), 10**6 + at)
    path.write_text("".join(lines), encoding="utf-8")


class Memory(threading.Thread):
    """The highest resident set of this process and all below it, in bytes, looked at every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stop = 0, threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.05):
            self.peak = max(self.peak, resident(os.getpid()))


def resident(pid: int) -> int:
    """Bytes resident of a process and all below it; what has just ended counts nothing."""
    try:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        threads = Path(f"/proc/{pid}/task").iterdir()
        below = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return 0
    return size + sum(resident(child) for child in below)


def watch_start(begun: float) -> list[float]:
    """Gets the seconds from `begun` until a worker of a pool has the first record of its group before it."""
    found: list[float] = []

    class Watched(group_engines._Worker):
        def __init__(self, tokenizer: str) -> None:
            super().__init__(tokenizer)
            group_engines._set_mark(self._mark, -1)
            threading.Thread(target=self.wait, daemon=True).start()

        def wait(self) -> None:
            while not found and int.from_bytes(self._mark[:8], "little", signed=True) < 0:
                time.sleep(0.001)
            found.append(time.perf_counter() - begun)

    group_engines._Worker = Watched
    return found


def run_one(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare once, in this process, and say what it took."""
    tokenizer = load_tokenizer(Path(job["tokenizer"]) if job["tokenizer"] else None, PromptTokenizer)
    entry = DatasetEntry(annotation=Path(job["annotation"]), root=Path(job["media"]))
    memory = Memory()
    first: list[float] = []
    memory.start()
    begun = time.perf_counter()
    worked = watch_start(begun)
    report = prepare(
        {"d": entry},
        job["out"],
        context_lengths={"d": CONTEXTS},
        rules=VisualRules(),
        tokenizer=tokenizer,
        engine=job["engine"],
        workers=job["workers"],
        progress=lambda name, done: first.append(time.perf_counter() - begun) if not first else None,
    )["d"]
    seconds = time.perf_counter() - begun
    memory.stop.set()
    memory.join()
    return {
        "seconds": seconds,
        "start_s": worked[0] if worked else None,
        "first_group_seconds": first[0] if first else None,
        "peak_gib": memory.peak / 2**30,
        "read": report.read,
        "prepared": report.prepared,
        "degraded": report.degraded,
    }


def in_fresh_process(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def groups(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "d" / "row-groups").rglob("*") if path.is_file()}


def shards(out: Path) -> set[tuple[str, int]]:
    """Every shard of every context length, with the time at which it was written."""
    return {(f"{path.parent.name}/{path.name}", path.stat().st_mtime_ns) for path in (out / "d").glob("context-*/rows-*.parquet")}


def files(out: Path) -> dict[str, bytes]:
    """What a preparation leaves, apart from the results of its groups."""
    paths = [path for path in (out / "d").rglob("*") if path.is_file() and "row-groups" not in path.parts]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=20_000, help="lines of the cases that compare workers and engines")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_one(json.loads(options.job))))
        return 0
    if options.out is None or options.commit is None:
        parser.error("--out and --commit are needed")
    head = head_of(sys.argv, options.commit, {"eagle-data": __version__})
    record = Record(options.out, {**head, "images": IMAGES, "clips": CLIPS})
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        media = corpus / "media"
        if not media.is_dir():
            make_media(media)
        many, few, one = corpus / "many.jsonl", corpus / "few.jsonl", corpus / "one.jsonl"
        for path, count in ((many, options.lines), (few, options.few), (one, 1)):
            write_lines(path, count)

        def measure(case: str, annotation: Path, out: Path, engine: str, workers: int, **more: Any) -> dict[str, Any]:
            job = {"annotation": str(annotation), "media": str(media), "out": str(out), "engine": engine, "workers": workers}
            found = in_fresh_process({**job, "tokenizer": str(options.tokenizer) if options.tokenizer else None})
            row = {
                "case": case,
                "impl": engine,
                "shape": {"lines": found["read"], "workers": workers, "contexts": list(CONTEXTS)},
                "value": found["read"] / found["seconds"],
                "unit": "lines/s",
                "runs": 1,
                **{name: found[name] for name in ("seconds", "start_s", "first_group_seconds", "peak_gib", "prepared")},
                **more,
            }
            record.add(row)
            print(json.dumps(row))
            return found

        out = Path(scratch)
        measure("start", one, out / "one-0", "local", 0)
        measure("start", one, out / "one-2", "local", 2)
        for workers in (0, 1, 2):
            measure("cold", few, out / f"few-{workers}", "local", workers)
        if options.ray:
            measure("cold", few, out / "few-ray", "ray", 2)
            ours, theirs = (files(out / name) for name in ("few-2", "few-ray"))
            for name in sorted(ours.keys() | theirs.keys()):
                if ours.get(name) != theirs.get(name):
                    record.add_failure("cold", "ray", f"{name} differs from what local gave")
        cold = measure("cold", many, out / "many", "local", 2)["seconds"]
        shutil.rmtree(out / "few-0")
        again = measure("again", many, out / "many", "local", 2)["seconds"]
        record.rows[-1]["share_of_cold"] = again / cold
        for case, scattered in (("edited_neighbours", False), ("edited_scattered", True)):
            before, shards_before = groups(out / "many"), shards(out / "many")
            edit(many, 0.01, scattered=scattered)
            seconds = measure(case, many, out / "many", "local", 2)["seconds"]
            after = groups(out / "many")
            redone = sum(before.get(name) != written for name, written in after.items())
            shards_after = shards(out / "many")
            record.rows[-1].update(share_of_cold=seconds / cold, edited_share=0.01, groups=len(after), groups_redone=redone)
            record.rows[-1].update(shards=len(shards_after), shards_written=len(shards_after - shards_before))
        record.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
