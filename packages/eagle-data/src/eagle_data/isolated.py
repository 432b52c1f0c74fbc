"""Frames of a video that nobody vouches for, decoded in a process of its own that can be killed.

Promises that a file which hangs, crashes or swallows memory costs one child and gives a MediaError, and that every other answer
is the one of `open_video` and `frames_at`, bit for bit. Nothing is pickled: the child gets JSON and gives raw arrays. Not a
sandbox: the child has the rights of its parent. Not fast: each call starts an interpreter.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np

from eagle_data.errors import MediaError, MissingMediaError
from eagle_data.fetch import Fetch
from eagle_data.video import Frames, VideoSource, open_video

__all__ = ["read_frames_isolated"]

_ERRORS = {error.__name__: error for error in (MediaError, MissingMediaError)}
_COLUMNS = (("seconds", np.float64), ("indices", np.int64), ("corrupt", np.bool_))
_GRACE = 5.0
"""Seconds after the timeout at which a child whose parent is gone ends by itself."""
_LEAVE_OUT = "Leave the file out, or re-encode it with ffmpeg"


def read_frames_isolated(
    source: VideoSource,
    indices: Iterable[int] | None = None,
    *,
    seconds: Iterable[float] | None = None,
    size: tuple[int, int] | None = None,
    timeout: float = 30.0,
    memory: int | None = None,
    fetch: Fetch | None = None,
) -> Frames:
    """Open a video in a fresh process, decode frames there with one thread, and end the process.

    Args:
        source: a path, URL, reference or folder as `open_video` takes it, bytes, or a list of paths. No file objects.
        indices: frame numbers.
        seconds: instead of `indices`, as in `Video.frames_at`.
        size: ``(width, height)``, as in `Video.frames_at`.
        timeout: seconds for everything, the start of the process included; then it is killed.
        memory: bytes of address space that opening, decoding and the frames may take, the libraries apart. A decoder that gets
            no memory for a frame may also mark it corrupt. None sets no limit.
        fetch: leave to fetch http(s) addresses, as in `open_video`.

    Returns:
        What `Video.frames_at` returns; damaged frames are marked, `Frames.intact` refuses them.

    Raises:
        MediaError: as `open_video` and `frames_at`; and when the child crashed, was killed, or went over `timeout` or `memory`.
    """
    name, request, body = _request(source)
    if timeout <= 0 or (memory is not None and memory <= 0):
        raise MediaError(name, f"timeout={timeout:g} and memory={memory}", "Give more than 0")
    request["indices"] = None if indices is None else [int(number) for number in indices]
    request["seconds"] = None if seconds is None else [float(second) for second in seconds]
    request |= {"size": size and [int(side) for side in size], "timeout": timeout, "memory": memory, "folder": os.getcwd()}
    request["fetch"] = fetch and asdict(fetch)  # JSON makes a list of `hosts`, which is asked with `in` all the same
    with TemporaryDirectory(prefix="eagle-data-") as place, TemporaryFile() as told:
        _run_child(name, Path(place), json.dumps(request).encode() + b"\n" + body, told, timeout)
        try:
            answer = json.loads(Path(place, "answer.json").read_bytes())
            if "error" in answer:
                raise _ERRORS[answer["error"]](*(str(answer[part]) for part in ("source", "reason", "mend")))
            return _frames(Path(place, "frames.raw"), answer, memory)
        except MediaError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MediaError(name, f"the process that read it gave a broken answer ({error})", _LEAVE_OUT) from error


def _request(source: Any) -> tuple[str, dict[str, Any], bytes]:
    """What errors call the source, how the child is told of it, and the bytes that follow."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>", {"bytes": len(source)}, source
    if isinstance(source, str | Path):
        return os.fspath(source), {"path": os.fspath(source)}, b""
    if isinstance(source, Sequence) and all(isinstance(item, str | Path) for item in source):
        return f"<list of {len(source)} pictures>", {"path": [os.fspath(item) for item in source]}, b""
    reason = f"a {type(source).__name__} cannot be handed to another process"
    raise MediaError(repr(source)[:80], reason, "Give a path, bytes or a list of paths")


def _run_child(name: str, place: Path, message: bytes, told: Any, timeout: float) -> None:
    """Start the child in the folder `place`, feed it and see it end, or kill it. Raises MediaError unless it ended well."""
    # In `place`, which is empty: `-m` looks for modules in the working directory first, and that may be anybody's.
    command = [sys.executable, "-m", "eagle_data.isolated"]
    with subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=told, stderr=told) as child:
        try:
            child.communicate(message, timeout)
        except subprocess.TimeoutExpired as error:
            raise MediaError(name, f"took longer than {timeout:g} s", "Raise timeout, or leave the file out") from error
        finally:
            child.kill()
    if child.returncode < 0:
        mend = "Leave the file out; if the machine was short of memory, pass memory="
        raise MediaError(name, f"the process that read it was ended by {_signal(-child.returncode)}", mend)
    if child.returncode:
        told.seek(max(told.seek(0, os.SEEK_END) - 300, 0))
        words = (told.read().decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise MediaError(name, f"the process that read it ended with exit code {child.returncode} ({words})", _LEAVE_OUT)


def _frames(path: Path, answer: dict[str, Any], memory: int | None) -> Frames:
    """The child's frames, its word taken for nothing that can be checked. Raises ValueError."""
    shape = tuple(int(side) for side in answer["shape"])
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 0:
        raise ValueError(f"pixels of shape {shape}")
    columns = [("pixels", np.uint8, shape), *((column, kind, shape[:1]) for column, kind in _COLUMNS)]
    total = sum(np.dtype(kind).itemsize * int(np.prod(size, dtype=object)) for _, kind, size in columns)
    if path.stat().st_size != total or (memory is not None and total > memory):
        raise ValueError(f"{path.stat().st_size} bytes for frames of {total}")
    with path.open("rb") as file:
        arrays = {
            column: np.fromfile(file, kind, int(np.prod(size, dtype=object))).reshape(size) for column, kind, size in columns
        }
    return Frames(**arrays, decoded=int(answer["decoded"]), source=str(answer["source"]))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# the child ----------------------------------------------------------------------------------------------------------------------


def _child(place: Path) -> None:
    """Answer the one request on standard input with files in `place`."""
    request = json.loads(sys.stdin.buffer.readline())
    signal.setitimer(signal.ITIMER_REAL, request["timeout"] + _GRACE)
    source: Any = request["path"] if "path" in request else sys.stdin.buffer.read(request["bytes"])
    os.chdir(request["folder"])
    memory = request["memory"]
    if memory is not None:
        _limit(memory)
    try:
        answer = _read(source, request, place / "frames.raw")
    except MediaError as error:
        answer = {"error": type(error).__name__, "source": error.source, "reason": error.reason, "mend": error.mend}
    except MemoryError:
        if memory is None:
            raise
        name = _request(source)[0]
        mend = "Raise memory, or ask for fewer or smaller frames"
        answer = {"error": "MediaError", "source": name, "reason": f"needs more than memory={memory} bytes", "mend": mend}
    (place / "answer.json").write_text(json.dumps(answer), encoding="ascii")


def _read(source: Any, request: dict[str, Any], out: Path) -> dict[str, Any]:
    size = request["size"] and tuple(request["size"])
    fetch = request["fetch"] and Fetch(**request["fetch"])
    with open_video(source, threads=1, fetch=fetch) as video:
        frames = video.frames_at(request["indices"], seconds=request["seconds"], size=size)
    with out.open("wb") as file:
        file.write(frames.pixels.data)
        for column, kind in _COLUMNS:
            file.write(np.ascontiguousarray(getattr(frames, column), kind).data)
    return {"shape": frames.pixels.shape, "decoded": frames.decoded, "source": frames.source}


def _limit(memory: int) -> None:
    """Let this process map `memory` bytes more than it has with its libraries loaded."""
    import av  # noqa: F401  # before the limit: what a library maps depends on the machine, not on the file
    from PIL import Image

    from eagle_data.media import reader  # noqa: F401

    Image.init()
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


if __name__ == "__main__":
    _child(Path.cwd())
