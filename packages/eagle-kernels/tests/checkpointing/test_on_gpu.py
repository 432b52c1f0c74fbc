"""The CUDA half: copies on a side stream, page-locked host memory, device memory that is really given up. Needs a GPU."""

import gc

import pytest
import torch
from eagle_kernels.checkpointing import Checkpointer, CheckpointPolicy
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LAYERS, ROWS, WIDTH, HEADS = 8, 4096, 2048, 16
INPUT = ROWS * WIDTH * 2
LSE = HEADS * ROWS * 4
OFFLOAD = CheckpointPolicy(offload_inputs=True)


def _plain(function, *args):
    return checkpoint(function, *args, use_reentrant=False)


def _weights(width=WIDTH):
    generator = torch.Generator("cuda").manual_seed(0)
    scale = WIDTH**-0.5
    return [
        (scale * torch.randn(WIDTH, width, generator=generator, device="cuda")).bfloat16().requires_grad_() for _ in range(LAYERS)
    ]


def _input(seed=1):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").bfloat16()


def _mlp(x, weight):
    return x + torch.nn.functional.silu(x @ weight)


def _attention(x, weight):
    q, k, v = (part.view(1, ROWS, HEADS, -1).transpose(1, 2) for part in (x @ weight).split(WIDTH, dim=-1))
    return x + scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(ROWS, WIDTH)


def _forward(run, weights, x, layer=_mlp, poison=False):
    for weight in weights:
        x = run(lambda h, w=weight: layer(h, w), x * 1.0)
        if poison:  # whatever memory is free now is overwritten at once
            for _ in range(3):
                torch.full_like(x, float("nan"))
    return x


def _same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _close(ours, theirs):
    return all((a.float() - b.float()).norm() <= 1e-2 * b.float().norm() for a, b in zip(ours, theirs, strict=True))


def _used():
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_gradients_to_the_bit_exact_host_bytes_and_no_inputs_on_the_device():
    weights = _weights()
    theirs = torch.autograd.grad(_forward(_plain, weights, _input()).float().square().mean(), weights)
    checkpointer = Checkpointer(OFFLOAD)
    for _ in range(3):
        x = _input()
        before = _used()
        output = _forward(checkpointer, weights, x)
        # On the device: the output, the last call's input, and a few bytes of random state.
        assert _used() - before <= 2 * INPUT + (1 << 16)
        assert checkpointer.memory.bytes_in_use == (LAYERS - 1) * INPUT
        ours = torch.autograd.grad(output.float().square().mean(), weights)
        assert _same(ours, theirs)
        del output, ours
        assert checkpointer.memory.bytes_in_use == 0
        assert checkpointer.memory.bytes_registered == (LAYERS - 1) * INPUT


def test_plain_checkpointing_holds_all_inputs_on_the_device():
    """The measure of the test above sees what it is meant to see."""
    weights, x = _weights(), _input()
    before = _used()
    output = _forward(_plain, weights, x)
    assert _used() - before >= LAYERS * INPUT
    del output


def test_the_peak_does_not_depend_on_how_far_ahead_the_host_runs():
    weights, x = _weights() * 6, _input()
    checkpointer = Checkpointer(OFFLOAD)
    before = _used()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda._sleep(1_000_000_000)  # half a second in which the host queues the whole step
    output = _forward(checkpointer, weights, x)
    assert torch.cuda.max_memory_allocated() - before <= 7 * INPUT
    output.float().square().mean().backward()
    assert torch.cuda.max_memory_allocated() - before <= 14 * INPUT + LAYERS * WIDTH * WIDTH * 2


def test_no_copy_races_with_memory_that_is_used_again():
    weights = _weights()
    theirs = torch.autograd.grad(_forward(_plain, weights, _input()).float().square().mean(), weights)
    checkpointer = Checkpointer(OFFLOAD)
    for step in range(30):
        output = _forward(checkpointer, weights, _input(), poison=True)
        if step % 3 == 1:  # a second step in between: its copies reuse nothing that is still needed
            other = _forward(checkpointer, weights, _input(2), poison=True)
            del other
        ours = torch.autograd.grad(output.float().square().mean(), weights)
        for _ in range(4):
            torch.full_like(output, float("nan"))
        assert _same(ours, theirs), step
        del output, ours


def test_a_graph_dropped_after_a_prefetch_hands_its_memory_on_safely():
    weights = _weights()
    checkpointer = Checkpointer(OFFLOAD)
    theirs = torch.autograd.grad(_forward(_plain, weights, _input()).float().square().mean(), weights)
    for _ in range(10):
        output = _forward(checkpointer, weights, _input())
        (lane,) = checkpointer._tape._lanes.values()
        with torch.cuda.stream(lane._stream):
            torch.cuda._sleep(50_000_000)
        torch.autograd.grad(output.float().sum(), weights[-1])  # fetches ahead what nobody will use
        del output
        fill = [torch.ones(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(LAYERS)]
        ours = torch.autograd.grad(_forward(checkpointer, weights, _input()).float().square().mean(), weights)
        assert all(bool((part == 1).all()) for part in fill)
        assert _same(ours, theirs)


def test_memory_is_page_locked_and_released():
    checkpointer = Checkpointer(OFFLOAD)
    block = checkpointer.memory.take(1 << 20, torch.device("cuda", 0))
    assert all(piece.is_pinned() for piece in block.pieces)
    pointer = block.pieces[0]
    del block
    checkpointer.memory.release()
    assert checkpointer.memory.bytes_registered == 0
    assert pointer.is_pinned()  # a view keeps its memory alive
    del pointer
    assert checkpointer.memory.take(1 << 20, torch.device("cuda", 0)).pieces[0].is_pinned()


@pytest.mark.parametrize("where", ["device", "host"])
def test_attention_is_kept_on_the_device_or_on_the_host(where):
    weights = _weights(3 * WIDTH)
    theirs = torch.autograd.grad(_forward(_plain, weights, _input(), _attention).float().square().mean(), weights)
    policy = CheckpointPolicy(
        offload_inputs=True,
        keep_attention=True,
        keep_budget=0 if where == "host" else None,
        offload_kept=where == "host",
        smallest=0,
    )
    checkpointer = Checkpointer(policy)
    for _ in range(3):
        output = _forward(checkpointer, weights, _input(), _attention)
        kept, host = checkpointer.bytes_kept, checkpointer.memory.bytes_in_use
        if where == "device":
            assert LAYERS * (INPUT + LSE) <= kept <= LAYERS * (INPUT + LSE + 4096)
            assert host == (LAYERS - 1) * INPUT
        else:
            assert kept == 0
            assert host == (LAYERS - 1) * (2 * INPUT + LSE)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ours = torch.autograd.grad(output.float().square().mean(), weights)
        # The autograd node is recorded by the composite operator; the kernel's own operator is not reached.
        forwards = [e.key for e in profile.key_averages() if e.key.startswith("aten::") and e.key.endswith("attention_forward")]
        assert not forwards
        assert _close(ours, theirs)
        del output, ours
        assert checkpointer.bytes_kept == checkpointer.memory.bytes_in_use == 0


def test_attention_dropout_replays_the_same_mask():
    weights = _weights(3 * WIDTH)[:2]

    def layer(x, weight):
        q, k, v = (part.view(1, ROWS, HEADS, -1).transpose(1, 2) for part in (x @ weight).split(WIDTH, dim=-1))
        mixed = scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True).transpose(1, 2).reshape(ROWS, WIDTH)
        return x + torch.nn.functional.dropout(mixed, 0.3)  # drawn after the kept operator

    results = []
    for run in (Checkpointer(CheckpointPolicy(keep_attention=True)), _plain):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(_forward(run, weights, _input(), layer).float().square().mean(), weights))
    assert _close(*results)
