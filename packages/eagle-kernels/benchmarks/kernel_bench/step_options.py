"""What a whole training step is made of: sequence length, implementation, and the settings of ours. One value, sent as JSON.

Promises: `parse` turns `key=value` words of the command line into options and names a wrong key. Needs no torch.
Not for: running the step (`step_worker.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class StepOptions:
    """Settings of ours: how the layers are checkpointed, and the MLP's tile.

    `checkpointer` is "eagle" (eagle_kernels.checkpointing) or "torch" (transformers' own switch, non-reentrant). The next five
    go into `CheckpointPolicy`; budgets are GiB. `mlp_tile_tokens` goes into `apply`; None leaves the MLP whole.
    """

    checkpointer: str = "eagle"
    offload_inputs: bool = False
    keep_attention: bool = False
    keep_budget_gib: float | None = None
    offload_kept: bool = False
    host_limit_gib: float | None = None
    mlp_tile_tokens: int | None = None

    def policy(self) -> dict[str, Any]:
        """The arguments of `CheckpointPolicy`; what was not set is left to its defaults."""
        chosen: dict[str, Any] = {
            name: True for name in ("offload_inputs", "keep_attention", "offload_kept") if getattr(self, name)
        }
        for name in ("keep_budget", "host_limit"):
            gib = getattr(self, f"{name}_gib")
            if gib is not None:
                chosen[name] = int(gib * GIB)
        return chosen


# At 32768 tokens there is memory for every attention output (6.2 GiB); at 131072 the bound is 45 GiB in all.
DEFAULTS = {
    "step_32768": StepOptions(keep_attention=True, mlp_tile_tokens=16384),
    "step_131072": StepOptions(
        offload_inputs=True, keep_attention=True, offload_kept=True, keep_budget_gib=0, mlp_tile_tokens=16384
    ),
}


def parse(words: Sequence[str], start: StepOptions) -> StepOptions:
    """`start` changed by words such as `keep_attention=false` or `mlp_tile_tokens=8192`; values are JSON.

    Raises:
        ValueError: a word has no `=`, names no option, or its value is not JSON (a bare word is taken as text).
    """
    names = {field.name for field in fields(StepOptions)}
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in names:
            raise ValueError(f"--step: {word!r} is not key=value with a key of {', '.join(sorted(names))}.")
        try:
            changes[key] = json.loads(value)
        except json.JSONDecodeError:
            changes[key] = value
    return replace(start, **changes)


@dataclass(frozen=True)
class Job:
    """One process of the worker: `impls` on one model, each warmed up once and timed `runs` times in turns.

    `impls`: transformers, liger, eagle; or plain, eagle_no_offload and eagle of the offload case.
    """

    case: str
    impls: tuple[str, ...]
    tokens: int
    runs: int
    device: str
    quick: bool
    options: StepOptions
    profile: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        content = json.loads(text)
        return Job(**{**content, "impls": tuple(content["impls"]), "options": StepOptions(**content["options"])})
