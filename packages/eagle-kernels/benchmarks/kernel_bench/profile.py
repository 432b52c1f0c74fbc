"""Where the time of one call goes: the table of torch's profiler, longest device time first.

Not for: timing; a profiled call is slower than a plain one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

LINES = 25


def profiled(call: Callable[[], object], device: torch.device) -> str:
    """Run the call once to warm it up and once under the profiler; the 25 longest operators as text."""
    call()
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as trace:
        call()
        if cuda:
            torch.cuda.synchronize(device)
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    return trace.key_averages().table(sort_by=by, row_limit=LINES, max_name_column_width=90)
