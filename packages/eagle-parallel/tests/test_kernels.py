"""Kernels: the GPU ones call operators whose contracts are emulated here on the CPU, so that packing and merging are checked."""

import sys
from types import SimpleNamespace

import pytest
import torch
from eagle_parallel import NotYetSupported, Segments, Span, attention_backward, attention_forward, available
from eagle_parallel.kernels import choose_kernel, cudnn, flash
from eagle_parallel.kernels.cudnn import CudnnKernel
from eagle_parallel.kernels.flash import FlashKernel
from eagle_parallel.kernels.flash_attn import FlashAttnKernel
from eagle_parallel.kernels.truth import TruthKernel
from hypothesis import given, settings
from hypothesis import strategies as st

SCALE = 0.4
CASES = [
    Segments.of([3, 1, 4], [5, 1, 9], causal=True),
    Segments.of([6], [6], causal=True),
    Segments.of([3, 2], [4, 7], causal=False),
]


def _tensors(segments, heads=(4, 2), head_dim=8):
    generator = torch.Generator().manual_seed(0)
    rows = (segments.queries, segments.keys, segments.keys, segments.queries)
    counts = (*heads, heads[1], heads[0])
    return [torch.randn(n, h, head_dim, dtype=torch.float64, generator=generator) for n, h in zip(rows, counts, strict=True)]


def _varlen_spans(cu_q, cu_k, causal):
    """The varlen contract: run i of the queries sees run i of the keys, causal masks aligned at the lower right corner."""
    spans = []
    for place in range(len(cu_q) - 1):
        (start, end), (first, last) = cu_q[place : place + 2].tolist(), cu_k[place : place + 2].tolist()
        spans.append(Span(start, end, first, last, (last - first) - (end - start) if causal else last - first))
    return spans


def _emulated_aten():
    def flash_forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale):
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert (cu_q.dtype, cu_k.dtype, dropout, debug) == (torch.int32, torch.int32, 0.0, False)
        assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        return *attention_forward(q, k, v, _varlen_spans(cu_q, cu_k, causal), scale), None, None, None

    def flash_backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, state, unused, *, scale):
        assert grad.stride(-1) == q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert (state.dtype, unused.dtype, dropout) == (torch.uint64, torch.uint64, 0.0)
        return attention_backward(grad, q, k, v, out, lse, _varlen_spans(cu_q, cu_k, causal), scale)

    def rows(tensor):
        assert tensor.shape[0] == tensor.stride(-1) == 1
        return tensor[0].transpose(0, 1)

    def square(q, k, causal):
        # Upper left corner: query i sees keys 0 to i.
        return [Span(0, q.shape[0], 0, k.shape[0], 0 if causal else k.shape[0])]

    def cudnn_forward(q, k, v, bias, want_lse, dropout, causal, debug, *, scale):
        assert (bias, want_lse, dropout, debug) == (None, True, 0.0, False)
        q, k, v = rows(q), rows(k), rows(v)
        out, lse = attention_forward(q, k, v, square(q, k, causal), scale)
        return out.transpose(0, 1)[None], lse[None, :, :, None]

    def cudnn_backward(grad, q, k, v, out, lse, seed, offset, bias, cu_q, cu_k, max_q, max_k, dropout, causal, *, scale):
        q, k, v = rows(q), rows(k), rows(v)
        assert (max_q, max_k, dropout, bias) == (q.shape[0], k.shape[0], 0.0, None)
        grads = attention_backward(rows(grad), q, k, v, rows(out), lse[0, :, :, 0], square(q, k, causal), scale)
        return tuple(part.transpose(0, 1)[None] for part in grads)

    return SimpleNamespace(
        _flash_attention_forward=flash_forward,
        _flash_attention_backward=flash_backward,
        _scaled_dot_product_cudnn_attention=cudnn_forward,
        _scaled_dot_product_cudnn_attention_backward=cudnn_backward,
    )


@pytest.fixture
def aten(monkeypatch):
    for module in (flash, cudnn):
        monkeypatch.setattr(module, "aten", _emulated_aten())


def _agree(kernel, segments, heads=(4, 2), expanded=False):
    q, k, v, grad = _tensors(segments, heads)
    if expanded:
        grad = grad[:, :1, :1].expand_as(grad)
    truth = TruthKernel()
    out, lse = kernel.forward(q, k, v, segments, SCALE)
    expected = truth.forward(q, k, v, segments, SCALE)
    torch.testing.assert_close((out, lse), expected, rtol=1e-6, atol=1e-6, check_dtype=False)
    found = kernel.backward(grad, q, k, v, *expected, segments, SCALE)
    expected_grads = truth.backward(grad, q, k, v, *expected, segments, SCALE)
    torch.testing.assert_close(found, expected_grads, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("segments", CASES)
@pytest.mark.parametrize("kernel", [FlashKernel(), CudnnKernel()])
def test_torch_kernels_give_the_truth_through_the_contracts_of_their_operators(kernel, segments):
    _agree(kernel, segments)
    _agree(kernel, segments, expanded=True)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("run", [1, 4, 100])
def test_cudnn_brings_many_segments_together_in_runs_of_any_length(monkeypatch, run):
    monkeypatch.setattr(cudnn, "_RUN", run)
    _agree(CudnnKernel(), Segments.of([2, 2, 1, 3, 2, 4, 2], [2, 5, 1, 3, 7, 4, 2], causal=True))
    _agree(CudnnKernel(), Segments.of([2, 3], [5, 4], causal=False))


@pytest.mark.usefixtures("aten")
def test_cudnn_s_gradients_have_the_inputs_dtype_with_a_document_of_one_row_too():
    segments = Segments.of([1, 3], [1, 3], causal=True)
    q, k, v, grad = (tensor.to(torch.bfloat16) for tensor in _tensors(segments))
    out, lse = CudnnKernel().forward(q, k, v, segments, SCALE)
    grads = CudnnKernel().backward(grad, q, k, v, out, lse, segments, SCALE)
    assert {tensor.dtype for tensor in (out, *grads)} == {torch.bfloat16}


def _fill(places, grads):
    for place, grad in zip(places, grads, strict=True):
        place.copy_(grad)


def _flash_attn_2_7(calls):
    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None,
    ):  # fmt: skip
        calls.append((window_size_left, window_size_right, max_seqlen_q, max_seqlen_k, dropout_p))
        return *attention_forward(q, k, v, _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal), softmax_scale), None, None

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        calls.append((window_size_left, window_size_right, alibi_slopes, deterministic))
        spans = _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal)
        _fill((dq, dk, dv), attention_backward(dout, q, k, v, out, softmax_lse, spans, softmax_scale))

    return SimpleNamespace(_flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=backward)


def _flash_attn_2_6(calls):
    def forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size=(-1, -1), softcap=0.0, alibi_slopes=None, return_softmax=False, block_table=None,
    ):  # fmt: skip
        calls.append((*window_size, max_seqlen_q, max_seqlen_k, dropout_p))
        out, lse = attention_forward(q, k, v, _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal), softmax_scale)
        return out, q, k, v, out, lse, None, None

    return SimpleNamespace(
        _flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=_flash_attn_2_7(calls)._flash_attn_varlen_backward
    )


def _flash_attn_3(calls):
    def forward(
        q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, max_seqlen_q, max_seqlen_k, softmax_scale,
        causal, window_size=(-1, -1), softcap=0.0, num_splits=1,
    ):  # fmt: skip
        calls.append((*window_size, k_new, cu_seqlens_k_new))
        spans = _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal)
        return *attention_forward(q, k, v, spans, softmax_scale), None, None

    def backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None, max_seqlen_q=None,
        max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=0.0, is_causal=False, window_size_left=-1,
        window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # fmt: skip
        calls.append((window_size_left, window_size_right, deterministic))
        spans = _varlen_spans(cu_seqlens_q, cu_seqlens_k, is_causal)
        _fill((dq, dk, dv), attention_backward(dout, q, k, v, out, softmax_lse, spans, softmax_scale))

    return SimpleNamespace(_flash_attn_forward=forward, _flash_attn_backward=backward)


def _flash_attn_4(calls):
    def forward(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None,
        softmax_scale=0.0, causal=False, softcap=None, window_size_left=None, window_size_right=None, return_lse=False,
    ):  # fmt: skip
        calls.append((window_size_left, window_size_right, return_lse))
        return attention_forward(q, k, v, _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal), softmax_scale)

    def backward(
        q, k, v, out, dout, lse, softmax_scale=0.0, causal=False, softcap=0.0, window_size_left=None, window_size_right=None,
        cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, deterministic=False, dq=None, dk=None,
        dv=None,
    ):  # fmt: skip
        calls.append((window_size_left, window_size_right, deterministic))
        spans = _varlen_spans(cu_seqlens_q, cu_seqlens_k, causal)
        _fill((dq, dk, dv), attention_backward(dout, q, k, v, out, lse, spans, softmax_scale))
        return dq, dk, dv

    return SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)


@pytest.mark.parametrize(
    ("generation", "module", "make", "forward_call", "backward_call"),
    [
        (2, "flash_attn.flash_attn_interface", _flash_attn_2_7, (-1, -1, 4, 9, 0.0), (-1, -1, None, False)),
        (2, "flash_attn.flash_attn_interface", _flash_attn_2_6, (-1, -1, 4, 9, 0.0), (-1, -1, None, False)),
        (3, "flash_attn_interface", _flash_attn_3, (-1, -1, None, None), (-1, -1, False)),
        (4, "flash_attn.cute.interface", _flash_attn_4, (None, None, True), (None, None, False)),
    ],
)
def test_flash_attn_is_called_by_the_parameters_that_its_release_has(
    monkeypatch, generation, module, make, forward_call, backward_call
):
    calls = []
    parts = module.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, module, make(calls))
    _agree(FlashAttnKernel(generation), CASES[0])
    assert calls == [forward_call, backward_call]


@settings(deadline=None, max_examples=50)
@given(runs=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=4), causal=st.booleans())
def test_segments_as_spans_follow_the_varlen_contract(runs, causal):
    segments = Segments.of([q for q, _ in runs], [q + more for q, more in runs], causal=causal)
    assert segments.spans() == _varlen_spans(segments.cu_queries, segments.cu_keys, causal)
    assert (segments.queries, segments.keys) == (int(segments.cu_queries[-1]), int(segments.cu_keys[-1]))


@pytest.mark.parametrize(("queries", "keys", "causal"), [([0], [3], False), ([2], [0], False), ([3], [2], True)])
def test_segments_that_see_nothing_are_refused(queries, keys, causal):
    with pytest.raises(ValueError, match=r"segment 0 has .* leave segments that see nothing out"):
        Segments.of(queries, keys, causal=causal)


def test_without_a_gpu_the_truth_is_chosen_and_the_others_say_why_not():
    found = available("cpu")
    assert found["truth"] is None
    assert all("CUDA device" in str(found[name]) for name in ("flash", "cudnn", "fa"))
    assert choose_kernel("auto", torch.zeros(1, 1, 8, dtype=torch.bfloat16)).name == "truth"
    with pytest.raises(NotYetSupported, match=r"kernel 'cudnn' cannot run here: .*Use kernel='auto'"):
        choose_kernel("cudnn", torch.zeros(1, 1, 8))
