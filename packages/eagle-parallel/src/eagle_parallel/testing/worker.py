"""The process that `run_ranks` starts for one rank: import a file, and for each world size call its function in a gloo group.

Arguments: file, function, folder for results, world sizes joined by commas, rank. Not meant to be started by hand.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(file: str, function: str, folder: str, worlds: str, rank: int) -> None:
    """Run one rank; results go to `<folder>/<world>-<rank>.pt`."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # Without this gloo looks up the host name, which a machine without a network may not resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    spec = importlib.util.spec_from_file_location("eagle_parallel_ranks_target", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for world in map(int, worlds.split(",")):
        if rank >= world:
            continue
        store = Path(folder, f"store-{world}").resolve().as_uri()
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
        result = getattr(module, function)()
        torch.save(result, Path(folder, f"{world}-{rank}.pt"))
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:5], rank=int(sys.argv[5]))
