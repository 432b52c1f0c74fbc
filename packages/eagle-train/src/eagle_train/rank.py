"""The program of one rank that `eagle_train.launch` started: join the others, do the run, leave word of how it ended.

Not for use by hand: torchrun and the command line start `eagle_train.cli`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path


def main(folder: Path) -> int:
    """Do this rank's part of the run described in `folder`; the exit code is that of the command line."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    from eagle_train.errors import Interrupted, RunError

    def leave(kind: str, message: str = "") -> None:
        # Before the others can notice that this rank has gone: the first to speak is the one that failed.
        path = folder / f"outcome-{rank}.json"
        said = json.dumps({"kind": kind, "message": message, "time": time.time()})
        path.with_suffix(".part").write_text(said, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)

    try:
        leave("done" if _run(folder, rank, world) else "finished")
    except (Interrupted, KeyboardInterrupt) as error:
        leave(type(error).__name__)
        return 130
    except RunError as error:
        leave(type(error).__name__, str(error))
        return 1
    except Exception:
        leave("crash", traceback.format_exc())
        return 1
    finally:
        _leave_the_group()
    return 0


def _run(folder: Path, rank: int, world: int) -> bool:
    from rich.console import Console

    from eagle_train.display import Display
    from eagle_train.pipeline import Run
    from eagle_train.ranks import device_of, join
    from eagle_train.recipe import Recipe

    asked = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recipe = Recipe.model_validate_json(asked["recipe"])
    join(device_of(recipe), f"file://{folder / 'store'}", rank=rank, world=world)
    return Run(recipe, Display(Console(quiet=rank > 0))).start(fresh=asked["fresh"])


def _leave_the_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def _end_with_the_launcher() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
