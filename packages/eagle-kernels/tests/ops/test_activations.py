"""SwiGLU, GEGLU and bias + GELU against their formulas in float64, and SwiGLU against transformers' MLP activation."""

import math

import eagle_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN


def _gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=3)


@settings(deadline=None, max_examples=25)
@given(shape=shapes)
def test_gated_units_are_their_formulas_separate_and_packed(shape):
    gate, up = torch.randn(*shape, dtype=torch.float64) * 3, torch.randn(*shape, dtype=torch.float64)
    packed = torch.cat((gate, up), -1)
    for separate, joined, activation in (
        (eagle_kernels.swiglu, eagle_kernels.swiglu_packed, lambda x: x / (1 + torch.exp(-x))),
        (eagle_kernels.geglu, eagle_kernels.geglu_packed, _gelu_tanh),
    ):
        torch.testing.assert_close(separate(gate, up), activation(gate) * up, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(joined(packed), separate(gate, up), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_swiglu_gives_the_bits_of_the_transformers_expression(dtype):
    gate, up = (torch.randn(5, 33).to(dtype) * 3 for _ in range(2))
    assert torch.equal(eagle_kernels.swiglu(gate, up), ACT2FN["silu"](gate) * up)


@settings(deadline=None, max_examples=25)
@given(shape=shapes)
def test_bias_gelu_tanh_is_the_tanh_formula_of_the_sum(shape):
    x, bias = torch.randn(*shape, dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    torch.testing.assert_close(eagle_kernels.bias_gelu_tanh(x, bias), _gelu_tanh(x + bias), rtol=1e-12, atol=1e-13)


def test_bias_gelu_tanh_rounds_bfloat16_once():
    x, bias = torch.randn(40, 64).bfloat16(), torch.randn(64).bfloat16()
    exact = eagle_kernels.bias_gelu_tanh(x.double(), bias.double())
    result = eagle_kernels.bias_gelu_tanh(x, bias)
    assert result.dtype == torch.bfloat16
    assert ((result.double() - exact).abs() <= exact.abs() * 2**-7.99 + 1e-6).all()


@pytest.mark.parametrize("operator", [eagle_kernels.swiglu, eagle_kernels.geglu])
def test_gated_units_pass_gradcheck(operator):
    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(operator, inputs)


def test_bias_gelu_tanh_passes_gradcheck():
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,))]
    assert torch.autograd.gradcheck(eagle_kernels.bias_gelu_tanh, inputs)


def test_wrong_arguments_are_errors_that_name_the_argument():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"up has shape \[2, 5\], expected \[2, 4\]"):
        eagle_kernels.swiglu(x, torch.zeros(2, 5))
    with pytest.raises(TypeError, match=r"up is torch.float64 but gate is torch.float32"):
        eagle_kernels.geglu(x, x.double())
    with pytest.raises(ValueError, match="gate_up has shape"):
        eagle_kernels.swiglu_packed(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="bias is on meta"):
        eagle_kernels.bias_gelu_tanh(x, torch.zeros(4, device="meta"))
