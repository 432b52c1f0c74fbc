"""One case at one shape, and the way every case is measured: first right, then fast.

Promises: each implementation gets its own copy of the inputs (some peers write their gradients over them), its answer is
compared with the float64 truth before it is timed, and all that pass are timed in turns. Ours with a red answer is not timed.
Not for: what a case computes (`norms.py`, `rope.py`, `gated.py`, `linear_ce.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernel_bench.measure import Budget, free_memory, peak_gib, relative_error, take_turns
from kernel_bench.peers import NotOffered, Operator, Operators
from kernel_bench.record import Record

Call = Callable[[], tuple[Tensor, ...]]
Bind = Callable[[Operator, tuple[Tensor, ...]], Call]
EAGER_SHARE = 1.05
SLACK = 1e-6
SCALAR_SLACK = 1e-3
SHORT = Budget()


@dataclass(frozen=True)
class Setting:
    """What all problems of a run share: the device, tiny shapes or the real ones, the copy rate, rows of logits in a chunk."""

    device: torch.device
    quick: bool
    copy_tb_s: float
    chunk_rows: int

    def random(self) -> Callable[..., Tensor]:
        """A new, seeded source of normal bfloat16 numbers on the device: `random(rows, columns)`."""
        generator = torch.Generator(self.device).manual_seed(0)
        return partial(torch.randn, generator=generator, device=self.device, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Problem:
    """A case at a shape.

    `inputs` are the master copies; `bind` makes the call to time from an implementation's operator and a copy of them; `truth`
    holds the right result of every output of the call, in its order; `value` turns milliseconds into the row's unit.
    `suffix` is appended to the names of the implementations (a variant of the case), `unchecked` are calls of ours whose
    answers another case checks, and `extra` goes into every row as it is.
    """

    case: str
    shape: dict[str, int]
    operator: str
    inputs: tuple[Tensor, ...]
    bind: Bind
    truth: Mapping[str, Tensor]
    unit: str
    value: Callable[[float], float]
    budget: Budget = SHORT
    suffix: str = ""
    with_peak: bool = False
    unchecked: Mapping[str, Operator] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    def start(self, operator: Operator) -> Call:
        """The call of one implementation, on inputs of its own."""
        return self.bind(operator, tuple(tensor.clone() for tensor in self.inputs))

    def errors(self, call: Call) -> dict[str, float]:
        """Relative error of every output."""
        results = call()
        return {name: relative_error(result.detach(), self.truth[name]) for name, result in zip(self.truth, results, strict=True)}


@dataclass(frozen=True)
class Check:
    """The output that stands worst against the eager implementation: its error, eager's, and whether that is good enough."""

    output: str
    error: float
    eager_error: float
    right: bool


def check(errors: Mapping[str, float], eager_errors: Mapping[str, float], scalars: frozenset[str] = frozenset()) -> Check:
    """Compare errors with those of the eager implementation: at most 1.05 times as large on every output.

    Rounding of a single number is luck, so an output in `scalars` passes below 1e-3 as well; 1e-6 is added for float32 runs.
    """
    limits = {name: EAGER_SHARE * eager_errors[name] + (SCALAR_SLACK if name in scalars else SLACK) for name in errors}
    worst = max(errors, key=lambda name: errors[name] / limits[name])
    return Check(worst, errors[worst], eager_errors[worst], errors[worst] <= limits[worst])


def bind_forward(operator: Operator, inputs: tuple[Tensor, ...]) -> Call:
    """A forward pass as in training, with the graph recorded; a single tensor is returned as a tuple of one."""
    leaves = tuple(tensor.requires_grad_() for tensor in inputs)

    def call() -> tuple[Tensor, ...]:
        result = operator(*leaves)
        return result if isinstance(result, tuple) else (result,)

    return call


def bind_backward(operator: Operator, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> Call:
    """The backward pass of one forward pass, again and again, into fresh gradients of every input."""
    import torch._functorch.config as functorch

    leaves = tuple(tensor.requires_grad_() for tensor in inputs)
    # A compiled graph otherwise hands its saved tensors to the first backward pass and refuses a second one.
    with functorch.patch(donated_buffer=False):
        result = operator(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)


def solve(problem: Problem, implementations: Mapping[str, Operators], record: Record, setting: Setting) -> None:
    """Check and time every implementation of one problem, and write its rows.

    `implementations` holds "eagle"; the eager operator is always run for its error, and timed when it is in the table.
    """
    from kernel_bench.peers import eager

    if "compile" in implementations:
        torch._dynamo.reset()  # compiled anew for each shape
    scalars = frozenset(name for name, tensor in problem.truth.items() if tensor.dim() == 0)
    eager_errors = problem.errors(problem.start(eager()["eager"][problem.operator]))
    calls: dict[str, Call] = {}
    checks: dict[str, Check] = {}
    for impl, operators in implementations.items():
        name = impl + problem.suffix
        free_memory(setting.device)
        if problem.operator not in operators:
            if impl == "eagle":
                record.add_failure(problem.case, name, problem.shape, f"eagle_kernels has no {problem.operator}")
            else:
                record.add_absent(name, f"has no {problem.operator}", problem.case)
            continue
        try:
            call = problem.start(operators[problem.operator])
            checks[name] = check(problem.errors(call), eager_errors, scalars)
            calls[name] = call
        except NotOffered as reason:
            record.add_absent(name, str(reason), problem.case)
        except Exception as error:
            record.add_failure(problem.case, name, problem.shape, said(error))
        if impl == "eagle" and name in checks and not checks[name].right:
            del calls[name]
            record.add_failure(problem.case, name, problem.shape, f"wrong answer, not timed: {checks[name]}")
    calls |= {name: problem.start(operator) for name, operator in problem.unchecked.items()}
    write_rows(problem, calls, checks, record, setting)


def write_rows(
    problem: Problem, calls: Mapping[str, Call], checks: Mapping[str, Check], record: Record, setting: Setting
) -> None:
    """Time the calls in turns, then one row each; a peer whose check is red goes under `<case>_inexact`."""
    timings, errors = take_turns(calls, setting.device, problem.budget)
    for name, error in errors.items():
        record.add_failure(problem.case, name, problem.shape, said(error))
    for name, timing in timings.items():
        checked = checks.get(name)
        row: dict[str, Any] = {
            "case": problem.case if checked is None or checked.right else f"{problem.case}_inexact",
            "impl": name,
            "shape": problem.shape,
            "value": problem.value(timing.median_ms),
            "unit": problem.unit,
            "runs": timing.runs,
            "spread": timing.spread,
        }
        if problem.with_peak:
            row["peak_gib"] = peak_gib(calls[name], setting.device)
        if checked is not None:
            row |= {"output": checked.output, "error": checked.error, "eager_error": checked.eager_error}
        record.add({**row, **problem.extra})


def said(error: Exception) -> str:
    """The error's kind and the beginning of its message."""
    return f"{type(error).__name__}: {str(error)[:400]}"
