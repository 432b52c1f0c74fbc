"""Where groups are prepared, the third place: Ray Data, on this machine or on the cluster of `RAY_ADDRESS` (extra `ray`).

Promises the bytes that the local engines give. Every machine must see the media and the output folder under the same paths and
have this package; results go to the store there, only names of groups travel back. Groups are handed over in waves, so memory
does not grow with the data. Not for small jobs: Ray takes seconds to start.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from itertools import islice
from typing import Any

from eagle_data.errors import EagleDataError
from eagle_data.group_engines import Task
from eagle_data.group_work import GroupWorker
from eagle_data.tokens import PromptTokenizer

_WAVE = 4096
"""Groups of a wave: some hundred megabytes of annotations in Ray's store, and seconds of start for 300 000 lines."""


class RayEngine:
    """An engine of `workers` Ray actors of one core each; None takes every core that Ray has. Close it, or use a `with` block.

    Uses the Ray that this process is connected to, and else starts or joins one, which `close` leaves again. Raises
    EagleDataError where Ray is not installed.
    """

    def __init__(self, tokenizer: PromptTokenizer, workers: int | None) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise EagleDataError("engine 'ray': Ray is not installed; install the extra, eagle-data[ray]") from error
        self._ray: Any = ray
        self._own = not ray.is_initialized()
        if self._own:
            joined = bool(os.environ.get("RAY_ADDRESS"))
            ray.init(**({} if joined else {"num_cpus": workers, "include_dashboard": False}), log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.workers = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self._tokenizer = ray.put(tokenizer.to_text())

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the Ray that this engine started or joined."""
        if self._own:
            self._ray.shutdown()

    def __call__(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The engine: see `group_engines`."""
        while wave := list(islice(tasks, _WAVE)):
            work = [{"task": pickle.dumps(task)} for task in wave if task.chunk is not None]
            if work:
                blocks = min(len(work), 8 * self.workers)
                data = self._ray.data.from_items(work, override_num_blocks=blocks).map_batches(
                    _RayWorker,
                    fn_constructor_args=(self._tokenizer,),
                    batch_size=1,
                    num_cpus=1,
                    concurrency=min(self.workers, len(work)),
                )
                done = {row["key"] for row in data.iter_rows()}
                missing = [task.key for task in wave if task.chunk is not None and task.key not in done]
                if missing:
                    raise RuntimeError(f"Ray finished without {len(missing)} of {len(work)} groups; run again to go on")
            for task in wave:
                yield Task(task.settings, task.key, None)


class _RayWorker:
    """An actor: tasks as bytes in, the names of their groups out."""

    def __init__(self, tokenizer: Any) -> None:
        import ray

        text = ray.get(tokenizer) if isinstance(tokenizer, ray.ObjectRef) else tokenizer
        self._worker = GroupWorker(PromptTokenizer.from_text(text))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        keys = []
        for data in batch["task"]:
            task: Task = pickle.loads(data)
            assert task.chunk is not None
            self._worker.work(task.settings, task.key, task.chunk)
            keys.append(task.key)
        return {"key": keys}
