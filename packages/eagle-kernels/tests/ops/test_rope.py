"""Rotary embedding against complex multiplication in float64 and against transformers bit for bit."""

import eagle_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb


def _angles(batch, tokens, rotary_dim, dtype=torch.float64):
    half = torch.rand(batch, tokens, rotary_dim // 2, dtype=torch.float64) * 6.28
    angles = torch.cat((half, half), -1)
    return half, angles.cos().to(dtype), angles.sin().to(dtype)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    tokens=st.integers(0, 6),
    half=st.integers(1, 6),
    kept=st.integers(0, 5),
    shared=st.booleans(),
)
def test_rope_turns_each_pair_as_a_complex_number_and_keeps_the_rest(batch, heads, kv_heads, tokens, half, kept, shared):
    q = torch.randn(batch, heads, tokens, 2 * half + kept, dtype=torch.float64)
    k = torch.randn(batch, kv_heads, tokens, 2 * half + kept, dtype=torch.float64)
    angles, cos, sin = _angles(1 if shared else batch, tokens, 2 * half)
    for result, x in zip(eagle_kernels.rope(q, k, cos, sin), (q, k), strict=True):
        turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angles), angles)[:, None]
        expected = torch.cat((turned.real, turned.imag, x[..., 2 * half :]), -1)
        torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_gives_the_bits_of_transformers_when_cos_and_sin_share_the_dtype(dtype):
    q, k = torch.randn(2, 6, 5, 16).to(dtype), torch.randn(2, 2, 5, 16).to(dtype)
    _, cos, sin = _angles(2, 5, 16, dtype)
    for ours, theirs in zip(eagle_kernels.rope(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        assert torch.equal(ours, theirs)


def test_rope_rounds_once_when_cos_and_sin_are_float32():
    q = torch.randn(1, 4, 50, 16).bfloat16()
    _, cos, sin = _angles(1, 50, 16, torch.float32)
    exact, _ = eagle_kernels.rope(q.double(), q.double(), cos, sin)
    result, _ = eagle_kernels.rope(q, q, cos, sin)
    assert result.dtype == torch.bfloat16
    assert ((result.double() - exact).abs() <= exact.abs() * 2**-7.99 + 1e-6).all()


def test_rope_is_undone_by_the_opposite_angle():
    q, k = torch.randn(1, 3, 4, 8, dtype=torch.float64), torch.randn(1, 1, 4, 8, dtype=torch.float64)
    _, cos, sin = _angles(1, 4, 8)
    there = eagle_kernels.rope(q, k, cos[0], sin[0])
    back = eagle_kernels.rope(*there, cos[0], -sin[0])
    torch.testing.assert_close(back, (q, k), rtol=1e-13, atol=1e-13)
    assert not torch.allclose(there[0], q)


def test_rope_passes_gradcheck_with_a_partial_rotary_dimension():
    q, k = (torch.randn(1, heads, 3, 6, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    _, cos, sin = _angles(1, 3, 4)
    assert torch.autograd.gradcheck(lambda q, k: eagle_kernels.rope(q, k, cos, sin), (q, k))


@pytest.mark.parametrize("scaling", [1.0, 1.3])
def test_rope_from_positions_gives_the_bits_of_the_transformers_module_in_float32(scaling):
    module = Qwen2RotaryEmbedding(Qwen2Config(hidden_size=32, num_attention_heads=2, max_position_embeddings=64))
    module.attention_scaling = scaling
    q, k = torch.randn(2, 2, 5, 16), torch.randn(2, 1, 5, 16)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 60, 0, 1, 2000]])
    cos, sin = module(q, positions)
    assert isinstance(module.inv_freq, torch.Tensor)
    found = eagle_kernels.rope_from_positions(q, k, positions, module.inv_freq, attention_scaling=scaling)
    for ours, theirs in zip(found, apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        assert torch.equal(ours, theirs)


def test_rope_from_positions_reads_the_axis_of_each_section_and_one_row_of_positions_for_the_whole_batch():
    q, k = (torch.randn(2, heads, 5, 14, dtype=torch.float64) for heads in (3, 1))
    inv_freq = torch.rand(6, dtype=torch.float64)
    positions = torch.randint(100, (3, 1, 5))
    axis = [0, 1, 1, 2, 2, 2]
    half = torch.stack([positions[axis[pair], 0] * inv_freq[pair] for pair in range(6)], -1)
    angles = torch.cat((half, half), -1)
    expected = eagle_kernels.rope(q, k, angles.cos(), angles.sin())
    found = eagle_kernels.rope_from_positions(q, k, positions, inv_freq, sections=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    plain = eagle_kernels.rope_from_positions(q, k, positions[0, 0], inv_freq)
    everywhere = eagle_kernels.rope_from_positions(q, k, positions[:1].expand(3, 2, 5), inv_freq, sections=(2, 2, 2))
    torch.testing.assert_close(everywhere, plain, rtol=1e-12, atol=1e-12)


def test_rope_from_positions_passes_gradcheck():
    q, k = (torch.randn(1, heads, 3, 6, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    positions, inv_freq = torch.tensor([[2, 0, 5]]), torch.rand(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k: eagle_kernels.rope_from_positions(q, k, positions, inv_freq, attention_scaling=1.5), (q, k)
    )


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "k has shape", {"k": torch.zeros(1, 1, 4, 8)}),
        (TypeError, "position_ids is torch.float32", {"position_ids": torch.zeros(1, 5)}),
        (ValueError, r"position_ids has shape \[1, 4\]", {"position_ids": torch.zeros(1, 4, dtype=torch.int64)}),
        (ValueError, "position_ids has shape", {"sections": (1, 1, 2)}),
        (ValueError, "position_ids is on meta", {"position_ids": torch.zeros(1, 5, dtype=torch.int64, device="meta")}),
        (TypeError, "inv_freq is torch.bfloat16", {"inv_freq": torch.zeros(4).bfloat16()}),
        (ValueError, r"inv_freq has shape \[5\]", {"inv_freq": torch.zeros(5)}),
        (ValueError, "sections", {"sections": (1, 1, 1)}),
    ],
)
def test_wrong_positions_are_errors_that_name_the_argument(error, match, change):
    arguments = {name: torch.zeros(1, heads, 5, 8) for name, heads in (("q", 2), ("k", 1))}
    arguments |= {"position_ids": torch.zeros(1, 5, dtype=torch.int64), "inv_freq": torch.zeros(4)}
    with pytest.raises(error, match=match):
        eagle_kernels.rope_from_positions(**(arguments | change))


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "q has shape", {"q": torch.zeros(2, 5, 8)}),
        (ValueError, r"k has shape \[1, 1, 4, 8\]", {"k": torch.zeros(1, 1, 4, 8)}),
        (ValueError, "cos has rotary_dim 7", {"cos": torch.zeros(1, 5, 7)}),
        (ValueError, "sin has rotary_dim 10", {"sin": torch.zeros(1, 5, 10)}),
        (ValueError, r"sin has shape \[1, 4, 8\]", {"sin": torch.zeros(1, 4, 8)}),
        (ValueError, "they must agree", {"sin": torch.zeros(1, 5, 6)}),
        (TypeError, "cos has dtype", {"cos": torch.zeros(1, 5, 8, dtype=torch.int32)}),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, change):
    arguments = {name: torch.zeros(1, heads, 5, 8) for name, heads in (("q", 2), ("k", 1))}
    arguments |= {name: torch.zeros(1, 5, 8) for name in ("cos", "sin")}
    with pytest.raises(error, match=match):
        eagle_kernels.rope(**(arguments | change))
