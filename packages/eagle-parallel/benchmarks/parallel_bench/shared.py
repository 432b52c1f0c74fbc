"""What this harness takes from that of eagle-kernels: result files, timings, errors, recorded tests, the 7B-shaped model.

The two harnesses are folders of one repository, never installed; this file is the only place that knows where the other one lies
(`parallel_bench/__init__.py` puts it on the import path).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The other harness is on no path that a type checker reads.
    def __getattr__(name: str) -> Any: ...
else:
    from kernel_bench.command import listed
    from kernel_bench.measure import GIB, Timing, free_memory, relative_error, summarise
    from kernel_bench.record import Record, open_record, setting_of
    from kernel_bench.recorded_tests import main as record_tests
    from kernel_bench.step_options import Job, StepOptions
    from kernel_bench.step_worker import build as build_7b

    __all__ = [
        "GIB",
        "Job",
        "Record",
        "StepOptions",
        "Timing",
        "build_7b",
        "free_memory",
        "listed",
        "open_record",
        "record_tests",
        "relative_error",
        "setting_of",
        "summarise",
    ]
