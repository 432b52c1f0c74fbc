"""LayerNorm against its formula in float64, its rounding in short formats, and its error messages."""

import eagle_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None, max_examples=25)
@given(shape=st.lists(st.integers(0, 5), max_size=3), hidden=st.integers(2, 70), with_bias=st.booleans())
def test_layer_norm_is_the_formula_for_any_leading_shape(shape, hidden, with_bias):
    x = torch.randn(*shape, hidden, dtype=torch.float64)
    weight = torch.randn(hidden, dtype=torch.float64)
    bias = torch.randn(hidden, dtype=torch.float64) if with_bias else None
    centred = x - x.sum(-1, keepdim=True) / hidden
    expected = centred / (centred.square().sum(-1, keepdim=True) / hidden + 1e-6).sqrt() * weight
    expected = expected + bias if bias is not None else expected
    torch.testing.assert_close(eagle_kernels.layer_norm(x, weight, bias, 1e-6), expected, rtol=1e-11, atol=1e-11)


def test_layer_norm_rounds_bfloat16_once():
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((7, 64), (64,), (64,)))
    exact = eagle_kernels.layer_norm(x.double(), weight.double(), bias.double(), 1e-6)
    result = eagle_kernels.layer_norm(x, weight, bias, 1e-6)
    assert result.dtype == torch.bfloat16
    # One rounding to bfloat16's eight significant bits is at most 2^-8 of the value; float32 arithmetic adds a little.
    assert ((result.double() - exact).abs() <= exact.abs() * 2**-7.99 + 1e-6).all()


def test_layer_norm_passes_gradcheck():
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (5,), (5,))]
    assert torch.autograd.gradcheck(lambda x, weight, bias: eagle_kernels.layer_norm(x, weight, bias, 1e-6), inputs)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"bias has shape \[3\], expected \[4\]", {"bias": torch.zeros(3)}),
        (TypeError, "weight is torch.float64 but x is torch.float32", {"weight": torch.ones(4, dtype=torch.float64)}),
        (TypeError, "x must be a tensor, got list", {"x": [1.0]}),
        (ValueError, "bias is on meta", {"bias": torch.zeros(4, device="meta")}),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, change):
    with pytest.raises(error, match=match):
        eagle_kernels.layer_norm(
            **({"x": torch.zeros(2, 4), "weight": torch.ones(4), "bias": torch.zeros(4), "eps": 1e-6} | change)
        )
