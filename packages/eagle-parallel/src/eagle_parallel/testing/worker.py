"""The other end of `Pool`: one template process that imports and forks, and the ranks forked from it.

The template imports torch and each test file once; a rank is a fork of it, so starting one costs milliseconds instead of the
seconds of an import. The template itself never runs a collective or a thread. Not meant to be started by hand.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import torch
import torch._dynamo  # dispatch modes and checkpointing load it at first use, which would take seconds in every rank
import torch.distributed as dist

PACKET = 32768
"""Bytes of the largest message to or from the template; what a test sends and returns goes to the ranks, without a limit."""


def template(channel: socket.socket) -> None:
    """Answer "import", "fork" and "reap" until the channel closes. Returns in forked ranks as well, when their work is over."""
    modules: dict[str, ModuleType] = {}
    while True:
        packet, handles, _, _ = socket.recv_fds(channel, PACKET, 1)
        if not packet:
            return
        command, *arguments = pickle.loads(packet)
        if command == "import":
            answer = _import_file(arguments[0], modules)
        elif command == "fork":
            sys.stdout.flush()
            answer = os.fork()
            if answer == 0:
                channel.close()
                serve(Connection(handles[0]), arguments[0], modules)
                return
            os.close(handles[0])
        else:
            answer = _reap(*arguments)
        channel.send(pickle.dumps(answer))


def serve(parent: Connection, log: str, modules: dict[str, ModuleType]) -> None:
    """One rank: take jobs from `parent` until it says None or is gone; its output goes to the file `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    while True:
        try:
            job = pickle.loads(parent.recv_bytes())
        except EOFError:
            return
        if job is None:
            return
        answer = _run(modules, parent, *job)
        if answer is not None:
            parent.send_bytes(answer)


def _run(
    modules: dict[str, ModuleType],
    parent: Connection,
    file: str,
    function: str,
    arguments: tuple[Any, ...],
    rank: int,
    world: int,
    store: str,
    seconds: float,
) -> bytes | None:
    try:
        limit = timedelta(seconds=seconds)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
        answer = pickle.dumps(("result", time.monotonic(), getattr(modules[file], function)(*arguments)))
        if dist.is_initialized():
            dist.barrier()
        return answer
    except BaseException as error:
        # Before the group goes: the others fail when it does, and the first to fail is the one to name.
        parent.send_bytes(pickle.dumps(("error", time.monotonic(), "".join(traceback.format_exception(error)))))
        return None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _import_file(file: str, modules: dict[str, ModuleType]) -> str | None:
    """Import a Python file once; the traceback where that fails."""
    if file in modules:
        return None
    try:
        spec = importlib.util.spec_from_file_location(f"eagle_parallel_ranks_{len(modules)}", file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} cannot be imported as a Python file.")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        modules[file] = module
    except BaseException:
        return traceback.format_exc()[-PACKET // 4 :]
    return None


def _reap(process: int, seconds: float) -> int | None:
    """Exit code of an ended rank, negative for a signal; None where it is still running after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def main(handle: int) -> None:
    """Be the template at the other end of an inherited socket."""
    torch.set_num_threads(1)
    with socket.socket(fileno=handle) as channel:
        template(channel)
