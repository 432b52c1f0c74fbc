"""Compiles every kernel at its real widths for an H100/H200 without one, and prints its resources as JSON lines.

Triton compiles for any target; only launching needs the GPU. A stand-in driver names the target, and launches stop after
compilation. Run as a program, since the choice between compiler and interpreter is made once in a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from eagle_kernels.kernels import bias_gelu, cross_entropy, gated_unit, launch, layer_norm, rms_norm, rope
from eagle_kernels.ops.row_loss import LossTerms
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

MULTIPROCESSORS = 132
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Hopper:
    """The part of a Triton driver that compilation asks."""

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of local memory it spills to, from the compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(part.split(":") for line in usage.splitlines() if "REG:" in line for part in line.split() if ":" in part)
    return {"registers": int(fields["REG"]), "stack": int(fields["STACK"])}


def compile_launches(case: dict[str, object]) -> None:
    """From now on a launch compiles and prints instead of running; `case` is added to each line."""
    launched = JITFunction.run

    def run(self, *args, grid, warmup, **options):
        kernel = launched(self, *args, grid=grid, warmup=True, **options)
        assert kernel is not None
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        line = {"kernel": name, "warps": kernel.metadata.num_warps, "shared": kernel.metadata.shared}
        print(json.dumps({**case, **line, **resources(kernel.asm["cubin"])}), flush=True)
        return kernel

    JITFunction.run = run  # pyright: ignore[reportAttributeAccessIssue]


def norms(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, weight = torch.empty(rows, columns, dtype=dtype), torch.empty(columns, dtype=dtype)
    statistic = torch.empty(rows)
    for extra in (None, x):
        rms_norm.forward(x, extra, weight, 1e-6)
        rms_norm.backward(x, extra, x, weight, statistic)
    layer_norm.forward(x, weight, weight, 1e-6)
    layer_norm.backward(x, x, weight, True, statistic, statistic)


def rotations(q: Tensor, k: Tensor) -> None:
    tokens = q.shape[2]
    table = torch.empty(1, tokens, 128, dtype=q.dtype)
    positions = torch.zeros(1, tokens, dtype=torch.int64)
    for source in (rope.Tables(table, table), rope.Positions(positions, torch.empty(64), 1.0, None)):
        for backward in (False, True):
            rope.rotate(q, k, source, backward)


def main() -> None:
    driver.set_active(Hopper())  # pyright: ignore[reportArgumentType]
    for module in (launch, rms_norm, layer_norm, bias_gelu):
        if hasattr(module, "multiprocessors"):
            module.multiprocessors = lambda device: MULTIPROCESSORS  # pyright: ignore[reportAttributeAccessIssue]
    case: dict[str, object] = {}
    compile_launches(case)
    for columns, dtype in ((3584, torch.bfloat16), (18944, torch.bfloat16), (65536, torch.float32)):
        case.update(columns=columns)
        norms(64, columns, dtype)
    case.update(columns=152064)
    logits, labels = torch.empty(2, 152064, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64)
    cross_entropy.losses_and_gradients(logits, labels, None, LossTerms(vocab=152064), True)
    every = LossTerms(softcap=30.0, z_loss=1e-4, label_smoothing=0.1, vocab=152064)
    cross_entropy.losses_and_gradients(logits, labels, torch.ones(2), every, True)
    case.update(columns=128)
    heads = [torch.empty(1, 64, count, 128, dtype=torch.bfloat16).transpose(1, 2) for count in (28, 4)]
    rotations(*heads)
    rotations(*(head.contiguous() for head in heads))
    case.update(columns=18944)
    gate = torch.empty(64, 18944, dtype=torch.bfloat16)
    gated_unit.forward(gate, gate, False)
    gated_unit.backward(gate, gate, gate, False)
    case.update(columns=4304)
    x, bias = torch.empty(64, 4304, dtype=torch.bfloat16), torch.empty(4304, dtype=torch.bfloat16)
    bias_gelu.forward(x, bias)
    bias_gelu.backward(x, x, bias)


if __name__ == "__main__":
    sys.exit(main())
