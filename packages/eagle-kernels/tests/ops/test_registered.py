"""The registered operators as torch sees them: schema, fake, autograd, and whole graphs under torch.compile."""

from __future__ import annotations

import eagle_kernels
import pytest
import torch
from eagle_kernels.implementation import use_implementation
from torch import Tensor

from .compare import results
from .operators import OPERATORS

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    # The interpreter says so where a sigmoid saturates.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
OPS = torch.ops.eagle_kernels


def _tensor(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, device="cuda" if torch.cuda.is_available() else "cpu").requires_grad_(grad)


def _norm_samples() -> dict[str, tuple]:
    x, weight, bias, plain = _tensor(2, 3, 40), _tensor(40), _tensor(40), _tensor(2, 3, 40, grad=False)
    statistic, flat_weight = _tensor(6, grad=False), _tensor(40, grad=False)
    return {
        "rms_norm": (x, weight, 1e-6),
        "rms_norm/strided": (_tensor(40, 6).t(), weight, 1e-6),
        "add_rms_norm": (x, _tensor(2, 3, 40), weight, 1e-6),
        "rms_norm_backward": (plain, None, plain, flat_weight, statistic),
        "rms_norm_backward/residual": (plain, plain, plain, flat_weight, statistic),
        "layer_norm": (x, weight, bias, 1e-6),
        "layer_norm/no_bias": (x, weight, None, 1e-6),
        "layer_norm_backward": (plain, plain, flat_weight, True, statistic, statistic),
        "layer_norm_backward/no_bias": (plain, plain, flat_weight, False, statistic, statistic),
    }


def _activation_samples() -> dict[str, tuple]:
    x, plain = _tensor(2, 3, 40), _tensor(2, 3, 40, grad=False)
    return {
        "bias_gelu_tanh": (x, _tensor(40)),
        "bias_gelu_tanh_backward": (plain, plain, _tensor(40, grad=False)),
        "gated_unit": (x, _tensor(2, 3, 40), False),
        "gated_unit/gelu": (x, _tensor(40, 6).t().view(2, 3, 40), True),
        "gated_unit_backward": (plain, plain, plain, True),
        "gated_unit_packed": (x, False),
        "gated_unit_packed_backward": (_tensor(2, 3, 20, grad=False), plain, False),
    }


def _rope_samples() -> dict[str, tuple]:
    q, k, table = _tensor(2, 4, 5, 8), _tensor(2, 2, 5, 8), _tensor(2, 5, 8, grad=False)
    positions, inv_freq = torch.arange(10, device=q.device).view(2, 5), _tensor(4, grad=False)
    heads_inside = _tensor(2, 5, 4, 8).transpose(1, 2), _tensor(2, 5, 2, 8).transpose(1, 2)
    columns_outside = _tensor(2, 8, 4, 5).permute(0, 2, 3, 1), _tensor(8, 5, 2, 2).permute(3, 2, 1, 0)
    return {
        "rope": (q, k, table, table, False),
        "rope/heads_inside": (*heads_inside, table, table, False),
        "rope/columns_outside": (*columns_outside, table, table, False),
        "rope_from_positions": (q, k, positions, inv_freq, 1.0, [], False),
        "rope_from_positions/heads_inside": (*heads_inside, positions, inv_freq, 1.0, [], True),
        "rope_from_positions/sections": (q, k, positions.expand(3, 2, 5), inv_freq, 1.5, [1, 1, 2], False),
    }


SAMPLES = {"norm": _norm_samples, "activation": _activation_samples, "rope": _rope_samples}
NAMES = [(family, name) for family, samples in SAMPLES.items() for name in samples()]


@pytest.mark.parametrize("family, name", NAMES, ids=[name for _, name in NAMES])
def test_registration_passes_opcheck(family, name):
    torch.library.opcheck(getattr(OPS, name.partition("/")[0]), SAMPLES[family]()[name])


def test_every_registered_operator_has_an_opcheck_sample():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("eagle_kernels::")}
    names = {name.removeprefix("eagle_kernels::").partition(".")[0] for name in registered}
    sampled = {name.partition("/")[0] for _, name in NAMES}
    # Operators built on matrix products are tested in files of their own.
    assert {name for name in names if not name.startswith(("linear_cross_entropy", "tiled_"))} == sampled


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_compiled_whole_graph_gives_the_bits_of_the_eager_call(operator, device):
    torch._dynamo.reset()
    compiled = torch.compile(operator.run, fullgraph=True, backend="aot_eager")
    # The second size makes the graph one of symbolic sizes.
    for tokens in (3, 7):
        tensors, constants = operator.make((2, tokens, 4), 24, torch.float32, device)
        for whole, plain in zip(results(compiled, tensors, constants), results(operator.run, tensors, constants), strict=True):
            assert all(torch.equal(left, right) for left, right in zip(whole, plain, strict=True))


def test_the_compiled_graph_holds_the_kernel_and_not_the_twin(device):
    names = []

    def backend(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    x, weight = torch.randn(2, 8, device=device), torch.ones(8, device=device)
    torch.compile(eagle_kernels.rms_norm, fullgraph=True, backend=backend)(x, weight, 1e-6)
    assert any("eagle_kernels.rms_norm" in name for name in names), names
    with use_implementation("torch"):
        names.clear()
        torch.compile(eagle_kernels.rms_norm, fullgraph=True, backend=backend)(x, weight, 1e-6)
    assert names
    assert not any("eagle_kernels" in name for name in names), names
