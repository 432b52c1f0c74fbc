"""The attention truth against a dense softmax written out, its backward, and the merge of partial results."""

from itertools import accumulate, pairwise

import pytest
import torch
from eagle_parallel import Span, attention_backward, attention_forward, merge_attention, varlen_attention
from eagle_parallel.kernels import truth as attention_truth
from hypothesis import given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)


def _qkv(tokens, query_heads=4, kv_heads=2, head_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = (query_heads, kv_heads, kv_heads)
    return [torch.randn(tokens, n, head_dim, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for n in heads]


def _dense(q, k, v, borders):
    """Softmax attention over the full [tokens, tokens] matrix with a block-diagonal causal mask."""
    documents = torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(pairwise(borders))])
    place = torch.arange(len(documents))
    visible = (documents[:, None] == documents) & (place[:, None] >= place)
    k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2), (7, 1)]),
    seed=st.integers(0, 99),
)
def test_packed_attention_and_its_gradients_equal_the_dense_softmax(lengths, heads, seed):
    borders = [0, *accumulate(lengths)]
    q, k, v = inputs = _qkv(borders[-1], *heads, seed=seed)
    out, lse = varlen_attention(q, k, v, borders)
    expected, expected_lse = _dense(q, k, v, borders)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)
    probe = torch.randn(expected.shape, dtype=torch.float64)
    grads = torch.autograd.grad(out, inputs, probe)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs, probe), rtol=1e-11, atol=1e-12)


def test_documents_longer_than_a_block_of_queries_are_computed_alike(monkeypatch):
    q, k, v = inputs = _qkv(40)
    whole = varlen_attention(q, k, v, [0, 33, 40])
    probe = torch.randn_like(whole[0])
    grads = torch.autograd.grad(whole[0], inputs, probe)
    monkeypatch.setattr(attention_truth, "_QUERY_BLOCK", 7)
    parts = varlen_attention(q, k, v, [0, 33, 40])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(parts[0], inputs, probe), grads, rtol=1e-11, atol=1e-12)


def test_attention_passes_gradcheck():
    inputs = _qkv(6, 2, 1, 3)
    assert torch.autograd.gradcheck(lambda q, k, v: varlen_attention(q, k, v, [0, 4, 6])[0], inputs)


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    q, k, v = _qkv(30, dtype=torch.bfloat16)
    exact, _ = varlen_attention(q.double(), k.double(), v.double(), [0, 30])
    out, lse = varlen_attention(q, k, v, [0, 30])
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert ((out.double() - exact).abs() <= exact.abs() * 2**-7.99 + 1e-5).all()


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_two_halves_of_the_keys_merge_into_the_whole_and_share_its_backward(cut, seed):
    q, k, v = (tensor.detach() for tensor in _qkv(9, seed=seed))
    left, right = [Span(0, 9, 0, cut, 0)], [Span(0, 9, cut, 9, -cut)]
    whole = [Span(0, 9, 0, 9, 0)]
    out, lse = attention_forward(q, k, v, whole, 0.3)
    parts = [attention_forward(q, k, v, spans, 0.3) for spans in (left, right)]
    torch.testing.assert_close(merge_attention(*parts[0], *parts[1]), (out, lse), rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    expected = attention_backward(grad, q, k, v, out, lse, whole, 0.3)
    found = [attention_backward(grad, q, k, v, out, lse, spans, 0.3) for spans in (left, right)]
    for one, other, both in zip(*found, expected, strict=True):
        torch.testing.assert_close(one + other, both, rtol=1e-11, atol=1e-12)


def test_a_query_without_keys_gives_zero_and_minus_infinity_and_no_gradient():
    q, k, v = (tensor.detach() for tensor in _qkv(3))
    out, lse = attention_forward(q, k, v, [Span(0, 3, 0, 2, -1)], 1.0)
    assert not out[0].any()
    assert (lse[:, 0] == float("-inf")).all()
    assert out[1:].all()
    merged = merge_attention(out, lse, torch.zeros_like(out), torch.full_like(lse, float("-inf")))
    torch.testing.assert_close(merged, (out, lse), rtol=0, atol=0)
    dq, dk, dv = attention_backward(torch.ones_like(out), q, k, v, out, lse, [Span(0, 3, 0, 2, -1)], 1.0)
    assert not dq[0].any()
    assert torch.isfinite(torch.cat((dq.flatten(), dk.flatten(), dv.flatten()))).all()


def test_merging_does_not_overflow_where_the_exponentials_would():
    out = torch.tensor([[[1.0]], [[1.0]]])
    merged, lse = merge_attention(out, torch.tensor([[500.0, -500.0]]), 3 * out, torch.tensor([[500.0, -500.0]]))
    assert merged.flatten().tolist() == [2.0, 2.0]
    torch.testing.assert_close(lse, torch.tensor([[500.0, -500.0]]) + torch.tensor(2.0).log())


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "q has shape .* expected", {"q": torch.zeros(1, 5, 4, 8)}),
        (TypeError, "v is torch.float64 but q is torch.float32", {"v": torch.zeros(5, 2, 8, dtype=torch.float64)}),
        (ValueError, "v has shape", {"v": torch.zeros(5, 1, 8)}),
        (ValueError, "k has head_dim 4 but q has 8", {"k": torch.zeros(5, 2, 4), "v": torch.zeros(5, 2, 4)}),
        (ValueError, "q has 4 heads, which is not a multiple of the 3", {"k": torch.zeros(5, 3, 8), "v": torch.zeros(5, 3, 8)}),
        (ValueError, "k has 6 tokens but cu_seqlens ends at 5", {"k": torch.zeros(6, 2, 8), "v": torch.zeros(6, 2, 8)}),
    ],
)
def test_wrong_tensors_are_errors_that_name_the_argument(error, match, change):
    arguments = {"q": torch.zeros(5, 4, 8), "k": torch.zeros(5, 2, 8), "v": torch.zeros(5, 2, 8)} | change
    with pytest.raises(error, match=match):
        varlen_attention(**arguments, cu_seqlens=[0, 5])
