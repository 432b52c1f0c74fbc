"""GPU kernels against float64: errors at most 1.05 times those of the bare call on whole documents, 1.35 where parts merge.

Ranks meet a document from its middle, so a kernel gets fewer queries than keys. What it then gives is compared with the same rows
of the bare call on whole documents, whose other rows have gradients of zero. On a CPU the same tests run on emulated operators.
"""

from importlib import import_module

import pytest
import torch
from eagle_parallel import Span, attention_backward, attention_forward
from eagle_parallel.kernels import choose_kernel
from eagle_parallel.kernels.segments import Segments

bare = import_module("parallel_bench.bare")
exact = import_module("parallel_bench.exact")
emulated = import_module("parallel_bench.emulated")

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TIMES = 8 if CUDA else 1  # tiny documents on a CPU
HEADS = [(28, 4, 128), (7, 1, 64), (14, 2, 128), (14, 2, 64)] if CUDA else [(7, 1, 16), (4, 4, 8)]
# (queries, keys) of each document.
SEGMENTS = {
    "packed squares": [(37, 37), (64, 64), (131, 131), (2, 2)],
    "from the middle": [(30, 70), (16, 144), (64, 65), (5, 128)],
    "a single query or key": [(1, 90), (1, 1), (40, 41), (60, 60)],
}


@pytest.fixture(autouse=True)
def _operators():
    if CUDA:
        yield
    else:
        with emulated.emulated_kernels():
            yield


def _case(name, heads):
    generator = torch.Generator(DEVICE).manual_seed(0)
    scaled = [
        (queries if queries < 5 else queries * TIMES, keys if keys < 5 else keys * TIMES) for queries, keys in SEGMENTS[name]
    ]
    # One more key than queries stays one more.
    pairs = [(queries, queries + 1) if 0 < keys - queries < TIMES else (queries, keys) for queries, keys in scaled]
    keys = sum(count for _, count in pairs)
    query_heads, kv_heads, head_dim = heads
    counts = (query_heads, kv_heads, kv_heads, query_heads)
    tensors = [torch.randn(keys, n, head_dim, generator=generator, device=DEVICE, dtype=torch.bfloat16) for n in counts]
    ends = torch.tensor([count for _, count in pairs]).cumsum(0).tolist()
    rows = torch.cat([torch.arange(end - queries, end) for end, (queries, _) in zip(ends, pairs, strict=True)]).to(DEVICE)
    return pairs, tensors, rows


def _truth(tensors, segments):
    q, k, v, grad_out = (tensor.double() for tensor in tensors)
    scale = q.shape[-1] ** -0.5
    out, lse = attention_forward(q, k, v, segments.spans(), scale)
    return [out, *attention_backward(grad_out, q, k, v, out, lse, segments.spans(), scale)], lse


def _run(kernel, tensors, segments):
    q, k, v, grad_out = tensors
    scale = q.shape[-1] ** -0.5
    out, lse = kernel.forward(q, k, v, segments, scale)
    return [out, *kernel.backward(grad_out, q, k, v, out, lse, segments, scale)], lse


def _errors(found, truth):
    return dict(zip(exact.NAMES, (exact.relative_error(*pair) for pair in zip(found, truth, strict=True)), strict=True))


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_a_kernel_is_as_exact_as_the_bare_call(kernel, name, heads):
    if kernel == "cudnn" and CUDA and heads != HEADS[0] and name != "from the middle":
        pytest.skip("cuDNN builds a plan for every shape; the other heads are covered from the middle")
    pairs, whole, rows = _case(name, heads)
    segments = Segments.of(*zip(*pairs, strict=True), causal=True, device=DEVICE)
    q, k, v, grad_out = whole
    tensors = [q.index_select(0, rows), k, v, grad_out.index_select(0, rows)]
    truth, true_lse = _truth(tensors, segments)
    found, lse = _run(choose_kernel(kernel, q), tensors, segments)
    assert [part.shape for part in found] == [tensors[0].shape, tensors[0].shape, k.shape, v.shape]
    torch.testing.assert_close(lse.double(), true_lse, rtol=0, atol=2e-3)

    seen = torch.zeros_like(grad_out).index_copy_(0, rows, tensors[3])
    # The bare cuDNN call takes no document of one token; flash stands in for it there.
    alike = "flash" if any(keys == 1 for _, keys in pairs) else kernel
    plain = bare.whole(bare.bare_call(alike, [q, k, v, seen], [keys for _, keys in pairs])())
    expected = _errors([plain[0].index_select(0, rows), plain[1].index_select(0, rows), *plain[2:]], truth)
    merged = kernel == "cudnn" and any(keys > queries for queries, keys in pairs)
    allowed = dict.fromkeys(exact.NAMES, exact.SAME) | (dict.fromkeys(("out", "dq"), exact.MERGED) if merged else {})
    assert not exact.wrong(_errors(found, truth), expected, allowed)


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_strided_views_give_the_bits_of_contiguous_tensors(kernel):
    pairs, whole, rows = _case("from the middle", HEADS[0])
    segments = Segments.of(*zip(*pairs, strict=True), causal=True, device=DEVICE)
    q, k, v, grad_out = whole
    plain = [q.index_select(0, rows), k, v, grad_out.index_select(0, rows)]
    fused = torch.cat((k, v), dim=1)
    wide = torch.cat((plain[0], plain[0], plain[3]), dim=1)
    heads, kv_heads = q.shape[1], k.shape[1]
    views = [wide[:, heads : 2 * heads], fused[:, :kv_heads], fused[:, kv_heads:], wide[:, 2 * heads :]]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        chosen = choose_kernel(kernel, q)
        (expected, lse), (found, found_lse) = _run(chosen, plain, segments), _run(chosen, views, segments)
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(found_lse, lse)
    assert torch.equal(found[0], expected[0])
    for name, grad, other in zip(exact.NAMES[1:], found[1:], expected[1:], strict=True):
        if kernel == "flash":
            assert torch.equal(grad, other), name
        assert exact.relative_error(grad, other) < 2e-3, name  # cuDNN's backward pass is not deterministic


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_a_pack_of_single_tokens_is_its_values(kernel):
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, grad_out = (torch.randn(9, 28, 64, generator=generator, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(9, 4, 64, generator=generator, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    segments = Segments.of([1] * 9, [1] * 9, causal=True, device=DEVICE)
    (out, dq, dk, dv), lse = _run(choose_kernel(kernel, q), [q, k, v, grad_out], segments)
    scores = (q.double().unflatten(1, (4, 7)) * k.double()[:, :, None]).sum(-1).flatten(1) / 8
    torch.testing.assert_close(lse.double(), scores.T, rtol=1e-3, atol=1e-3)
    assert torch.equal(out, v.repeat_interleave(7, dim=1))
    summed = grad_out.double().unflatten(1, (4, 7)).sum(2)
    torch.testing.assert_close(dv.double(), summed, rtol=2e-2, atol=2e-2)
    # Exactly zero in exact arithmetic; the rounding of 64 products of order 1 is left.
    assert max(dq.abs().max().item(), dk.abs().max().item()) < 0.2


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_an_outside_lse_gives_the_gradients_of_a_part_of_the_keys(kernel):
    """What the ring needs: backward of one block of keys with the (out, lse) of all."""
    pairs = [(48 * TIMES, 48 * TIMES), (80 * TIMES, 80 * TIMES)]
    _, (q, k, v, grad_out), _ = _case("packed squares", HEADS[0])
    q, k, v, grad_out = (torch.cat([tensor] * 2)[: 128 * TIMES] for tensor in (q, k, v, grad_out))
    segments = Segments.of(*zip(*pairs, strict=True), causal=False, device=DEVICE)
    scale = q.shape[-1] ** -0.5
    spans = [Span(0, 128 * TIMES, 0, 128 * TIMES, 128 * TIMES)]
    out, lse = attention_forward(q.double(), k.double(), v.double(), spans, scale)
    truth = attention_backward(grad_out.double(), q.double(), k.double(), v.double(), out, lse, segments.spans(), scale)
    rounded = (out.to(q.dtype), lse.float())
    found = choose_kernel(kernel, q).backward(grad_out, q, k, v, *rounded, segments, scale)
    for name, grad, right in zip(exact.NAMES[1:], found, truth, strict=True):
        assert exact.relative_error(grad, right) < 1e-2, name
