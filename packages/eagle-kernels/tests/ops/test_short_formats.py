"""On a GPU: bfloat16 and float16 against the eager code they replace, and tensors of more than 2^31 elements."""

from __future__ import annotations

import pytest
import torch

from .compare import errors, results, seeds_for
from .operators import OPERATORS

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the interpreter truncates bfloat16"),
]
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


def _huge_fits() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= 100 * 2**30


@every_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_error_is_no_worse_than_that_of_the_eager_code(operator, dtype, device):
    tensors, constants = operator.make((2, 67, 6), 128 if operator.rotates else 1152, dtype, device)
    seeds = seeds_for(operator, tensors, constants)
    ours = errors(operator, operator.run, tensors, constants, seeds)
    eager = errors(operator, operator.eager, tensors, constants, seeds)
    assert all(mine <= 1.05 * theirs for mine, theirs in zip(ours, eager, strict=True)), (ours, eager)


@every_operator
@pytest.mark.skipif(not _huge_fits(), reason="needs 100 GiB of GPU memory")
def test_the_last_rows_of_more_than_2_to_the_31_elements_are_as_if_they_were_alone(operator, device):
    columns, last = 3584, 5
    rows = 2**31 // columns + last + 1
    lead, width = ((1, rows, 28), 128) if operator.rotates else ((rows,), columns)
    tensors, constants = operator.make(lead, width, torch.bfloat16, device)
    axes = operator.row_axes
    few = [
        tensor if axis is None else tensor.narrow(axis, tensor.shape[axis] - last, last)
        for tensor, axis in zip([*tensors, *constants], axes, strict=True)
    ]
    outputs, gradients = results(operator.run, tensors, constants)
    alone, alone_gradients = results(operator.run, few[: len(tensors)], few[len(tensors) :])
    assert outputs[0].numel() > 2**31
    for whole, part, axis in [
        *((whole, part, axes[0]) for whole, part in zip(outputs, alone, strict=True)),
        *zip(gradients, alone_gradients, axes, strict=False),
    ]:
        if axis is None:
            assert whole.isfinite().all()
        else:
            assert torch.equal(whole.narrow(axis, whole.shape[axis] - last, last), part)
    torch.cuda.empty_cache()
