"""RMSNorm and its fused residual addition against the formula in float64 and against transformers' module bit for bit."""

import eagle_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(0, 5), max_size=3), hidden=st.integers(1, 70), eps=st.sampled_from([1e-6, 1e-2]))
def test_rms_norm_is_the_formula_for_any_leading_shape(shape, hidden, eps):
    x = torch.randn(*shape, hidden, dtype=torch.float64)
    weight = torch.randn(hidden, dtype=torch.float64)
    expected = x / (x.square().sum(-1, keepdim=True) / hidden + eps).sqrt() * weight
    torch.testing.assert_close(eagle_kernels.rms_norm(x, weight, eps), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_gives_the_bits_of_the_transformers_module(dtype):
    module = Qwen2RMSNorm(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(3, 7, 48).to(dtype) * 4
    result = eagle_kernels.rms_norm(x, module.weight, 1e-5)
    assert result.dtype == dtype
    assert torch.equal(result, module(x))


def test_rms_norm_reads_strided_input_as_if_it_were_contiguous():
    x = torch.randn(16, 5, 3, dtype=torch.float64).permute(2, 1, 0)
    weight = torch.randn(16, dtype=torch.float64)
    strided, dense = (eagle_kernels.rms_norm(layout, weight, 1e-6) for layout in (x, x.contiguous()))
    torch.testing.assert_close(strided, dense, rtol=1e-13, atol=1e-13)


def test_rms_norm_passes_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: eagle_kernels.rms_norm(x, weight, 1e-6), (x, weight))


def test_add_rms_norm_returns_the_norm_of_the_rounded_sum_and_the_sum():
    x, residual = torch.randn(2, 9, 32).bfloat16(), torch.randn(2, 9, 32).bfloat16()
    weight = torch.randn(32).bfloat16()
    normed, summed = eagle_kernels.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(summed, x + residual)
    assert torch.equal(normed, eagle_kernels.rms_norm(x + residual, weight, 1e-6))


def test_add_rms_norm_passes_gradcheck_through_both_results():
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (3, 5), (5,))]
    assert torch.autograd.gradcheck(lambda x, residual, weight: eagle_kernels.add_rms_norm(x, residual, weight, 1e-6), inputs)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "x has dtype torch.int64", {"x": torch.zeros(2, 4, dtype=torch.int64)}),
        (ValueError, r"weight has shape \[5\], expected \[4\]", {"weight": torch.ones(5)}),
        (ValueError, "weight is on meta", {"weight": torch.ones(4, device="meta")}),
        (ValueError, "eps must be", {"eps": -1.0}),
        (ValueError, "x is a scalar", {"x": torch.tensor(1.0)}),
        (ValueError, r"residual has shape \[2, 1\]", {"residual": torch.zeros(2, 1)}),
        (TypeError, "residual is torch.float64", {"residual": torch.zeros(2, 4, dtype=torch.float64)}),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, change):
    arguments = {"x": torch.zeros(2, 4), "residual": torch.zeros(2, 4), "weight": torch.ones(4), "eps": 1e-6} | change
    with pytest.raises(error, match=match):
        eagle_kernels.add_rms_norm(**arguments)


def test_a_second_derivative_is_refused_and_not_silently_wrong(device):
    x = torch.randn(3, 8, device=device, requires_grad=True)
    weight = torch.ones(8, device=device, requires_grad=True)
    with eagle_kernels.use_implementation("triton"):
        (first,) = torch.autograd.grad(eagle_kernels.rms_norm(x, weight, 1e-6).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="rms_norm_backward"):
            torch.autograd.grad(first.sum(), x)
