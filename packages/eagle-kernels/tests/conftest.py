"""Where the kernels run in tests: on the GPU where there is one, else in Triton's interpreter on the CPU.

The interpreter must be chosen before triton is first imported, and the package imports it only when a kernel runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from eagle_kernels.implementation import use_implementation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_TOO_LATE = DEVICE == "cpu" and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> str:
    """The device on which kernels run here: "cuda" or "cpu"."""
    return DEVICE


@pytest.fixture(scope="module")
def kernels() -> Iterator[None]:
    """Every operator runs its kernel, and fresh memory holds NaN, so that an element which a kernel forgets to write shows."""
    if _TOO_LATE:
        pytest.fail("triton was imported before TRITON_INTERPRET was set; run the tests of eagle-kernels first, or alone.")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with use_implementation("triton"):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
