"""Every kernel against its twin in float64, forward and backward: any shape, any strides, nothing left unwritten."""

from __future__ import annotations

import eagle_kernels
import pytest
import torch
from eagle_kernels.ops.rope import naive_rope_from_positions, rope_from_positions
from hypothesis import given, settings
from hypothesis import strategies as st

from .compare import errors, exact, results, seeds_for
from .layouts import LAYOUTS
from .operators import EPS, OPERATORS, Operator, by_name

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    # The interpreter says so where a sigmoid saturates.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]
TOLERANCE = 3e-6
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
row_operators = pytest.mark.parametrize(
    "operator", [operator for operator in OPERATORS if not operator.rotates], ids=lambda operator: operator.name
)

# Each combination of block, divisibility by 16 and equality to 1 is compiled anew, so on a GPU the sizes are few.
if torch.cuda.is_available():
    leads = st.sampled_from([(), (1,), (0, 3), (2, 3, 5)])
    widths = st.sampled_from([1, 33, 48])
    EXAMPLES = 8
else:
    leads = st.lists(st.integers(0, 5), max_size=3)
    widths = st.integers(1, 70)
    EXAMPLES = 12


def _check(operator: Operator, tensors, constants, seeds) -> None:
    found = errors(operator, operator.run, tensors, constants, seeds)
    assert all(error <= TOLERANCE for error in found), found


def test_fresh_memory_is_poisoned(device):
    assert torch.empty(7, device=device).isnan().all()
    assert torch.zeros(1, device=device).new_empty(7).isnan().all()


@every_operator
@settings(deadline=None, max_examples=EXAMPLES)
@given(lead=leads, columns=widths)
def test_kernel_is_its_twin_for_any_shape(operator, lead, columns, device):
    tensors, constants = operator.make(lead, columns, torch.float32, device)
    _check(operator, tensors, constants, seeds_for(operator, tensors, constants))


@row_operators
@pytest.mark.parametrize("rows, columns", [(19, 1152), (130, 300), (3, 4304)])
def test_kernel_is_its_twin_where_programs_take_several_tiles_and_columns_several_blocks(operator, rows, columns, device):
    tensors, constants = operator.make((rows,), columns, torch.float32, device)
    _check(operator, tensors, constants, seeds_for(operator, tensors, constants))


@pytest.mark.parametrize("name", ["add_rms_norm", "layer_norm", "bias_gelu_tanh", "swiglu", "geglu_packed"])
def test_kernel_is_its_twin_on_rows_of_18944_columns(name, device):
    operator = by_name(name)
    tensors, constants = operator.make((2,), 18944, torch.float32, device)
    _check(operator, tensors, constants, seeds_for(operator, tensors, constants))


@every_operator
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_reads_strided_inputs_and_gradients_as_if_they_were_contiguous(operator, layout, device):
    tensors, constants = operator.make((2, 3, 4), 33, torch.float32, device)
    seeds = [LAYOUTS[layout](seed) for seed in seeds_for(operator, tensors, constants)]
    tensors = [LAYOUTS[layout](tensor) for tensor in tensors]
    constants = [LAYOUTS[layout](tensor) if tensor.dim() > 1 else tensor for tensor in constants]
    _check(operator, tensors, constants, seeds)


@every_operator
def test_gradient_of_a_sum_arrives_as_one_expanded_number(operator, device):
    tensors, constants = operator.make((3, 5), 20, torch.float32, device)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    found = operator.run(*leaves, *constants)
    total = torch.stack([part.sum() for part in (found if isinstance(found, tuple) else (found,))]).sum()
    _, truth = exact(operator, tensors, constants)
    for gradient, expected in zip(torch.autograd.grad(total, leaves), truth, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)


@row_operators
def test_parameter_gradients_are_the_same_bits_in_every_run(operator, device):
    tensors, constants = operator.make((61,), 40, torch.float32, device)
    seeds = seeds_for(operator, tensors, constants)
    first, second = (results(operator.run, tensors, constants, seeds)[1] for _ in range(2))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.parametrize("sections", [(6, 0, 0), (0, 6, 0), (0, 0, 6), (2, 0, 4), (1, 2, 3)])
def test_rope_follows_each_of_its_sections_also_where_some_are_empty(sections, device):
    q, k = (torch.randn(2, heads, 5, 12, device=device) for heads in (3, 1))
    positions, inv_freq = torch.randint(100, (3, 2, 5), device=device), torch.rand(6, device=device)
    found = rope_from_positions(q, k, positions, inv_freq, sections=sections)
    truth = naive_rope_from_positions(q.double(), k.double(), positions, inv_freq.double(), sections=sections)
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)  # angles of up to 100 in float32


@pytest.mark.parametrize("used", [0, 1])
def test_add_rms_norm_needs_only_one_of_its_results_in_the_loss(used, device):
    tensors = [torch.randn(*shape, device=device, requires_grad=True) for shape in ((5, 12), (5, 12), (12,))]
    seed = torch.randn(5, 12, device=device)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, truth = (
        torch.autograd.grad(
            eagle_kernels.add_rms_norm(*inputs, eps=EPS)[used], inputs, seed.to(inputs[0].dtype), materialize_grads=True
        )
        for inputs in (tensors, wide)
    )
    for gradient, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_keeps_its_accuracy_when_the_mean_is_three_thousand_deviations(device):
    x = torch.randn(4, 100, device=device) + 3000
    weight, bias = torch.ones(100, device=device), torch.zeros(100, device=device)
    truth = eagle_kernels.layer_norm(x.double(), weight.double(), bias.double(), 1e-6)
    found = eagle_kernels.layer_norm(x, weight, bias, 1e-6)
    assert (found.double() - truth).norm() <= 1e-3 * truth.norm()


@pytest.mark.parametrize("operator", OPERATORS[:4], ids=lambda operator: operator.name)
def test_rows_of_zeros_give_finite_results_and_gradients(operator, device):
    tensors, constants = operator.make((3,), 24, torch.float32, device)
    tensors = [torch.zeros_like(tensor) if tensor.dim() > 1 else tensor for tensor in tensors]
    _check(operator, tensors, constants, seeds_for(operator, tensors, constants))


@pytest.mark.parametrize("name", ["bias_gelu_tanh", "swiglu", "geglu"])
def test_activations_saturate_without_overflow(name, device):
    operator = by_name(name)
    x = torch.tensor([[0.0, 60, -60, 88, -88, 120, -120, 1e4, -1e4, 1e15, -1e15]], device=device)
    other = torch.zeros(11, device=device) if name == "bias_gelu_tanh" else torch.ones(1, 11, device=device)
    for value, truth in zip(results(operator.run, [x, other], [])[1], exact(operator, [x, other], [])[1], strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(operator.run(x, other).double(), operator.truth(x.double(), other.double()), rtol=1e-6, atol=1e-6)


def test_rope_from_positions_takes_float32_angles_as_transformers_does_at_a_million_tokens(device):
    q, k = (torch.randn(1, heads, 6, 32, device=device) for heads in (2, 1))
    positions = torch.tensor([[0, 1, 4095, 131071, 524288, 1048575]], device=device)
    inv_freq = 1e6 ** (-torch.arange(16, dtype=torch.float32, device=device) / 16)
    angle = positions[..., None] * inv_freq
    cos, sin = (torch.cat((table, table), -1) for table in (angle.double().cos(), angle.double().sin()))
    truth = eagle_kernels.rope(q.double(), k.double(), cos, sin)
    for found, expected in zip(rope_from_positions(q, k, positions, inv_freq), truth, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the offsets are tested with tensors of that size")
@every_operator
def test_row_offsets_are_64_bit(operator, device, tmp_path, monkeypatch):
    # The interpreter copies each argument's whole storage onto itself at the end, which would fill the sparse file.
    monkeypatch.setattr(torch.UntypedStorage, "copy_", lambda storage, source, non_blocking=None: storage)
    gap, rows, width = 2**30, 4, 16
    # Offsets that wrap at 32 bits land before the first row, on the zeros of two more gaps.
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=(rows + 2) * gap, dtype=torch.float32)
    (tmp_path / "sparse").unlink()

    def far_apart(tensor: torch.Tensor, axis: int | None, slot: int) -> torch.Tensor:
        if axis is None or not tensor.is_floating_point():
            return tensor
        strides = list(tensor.stride())
        strides[axis] = gap
        view = sparse.as_strided(tensor.shape, strides, 2 * gap + slot * 1024)
        return view.copy_(tensor)

    lead = (1, rows, 2) if operator.rotates else (rows,)
    tensors, constants = operator.make(lead, width, torch.float32, device)
    seeds = seeds_for(operator, tensors, constants)
    slots = iter(range(16))
    axes = operator.row_axes
    far = [far_apart(tensor, axis, next(slots)) for tensor, axis in zip(tensors, axes, strict=False)]
    far_seeds = [far_apart(seed, axes[0], next(slots)) for seed in seeds]
    assert far[0].stride(axes[0]) == gap
    _check(operator, far, constants, far_seeds)
