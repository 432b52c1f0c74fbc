"""Offloaded inputs: gradients to the bit, exact host bytes, nothing left on the device but the last call's, nothing leaked."""

import contextlib
import copy
import gc
import pickle
import weakref

import pytest
import torch
from eagle_kernels.checkpointing import Checkpointer, CheckpointPolicy, HostMemoryExceeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

OFFLOAD = CheckpointPolicy(offload_inputs=True, smallest=0)
ROWS, WIDTH = 6, 8
NBYTES = ROWS * WIDTH * 4


@pytest.fixture(autouse=True)
def _no_cycle_collector():
    """What these tests see freed is freed by reference counts alone, at the moment its last user is done."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _layer(x, weight):
    return x + torch.tanh(x @ weight).sin()


def _weights(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(WIDTH, WIDTH, generator=generator, requires_grad=True) for _ in range(count)]


def _input(seed=1):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def _forward(run, weights, x, layer=_layer):
    for weight in weights:
        x = run(lambda h, w=weight: layer(h, w), x * 1.0)  # a new tensor each time: its only owner is the graph
    return x


def _plain(function, *args, **kwargs):
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _gradients(run, weights, x, **options):
    return torch.autograd.grad(_forward(run, weights, x, **options).square().sum(), weights)


def _same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_gradients_are_those_of_torch_to_the_bit_and_steps_reuse_the_memory():
    weights = _weights()
    checkpointer = Checkpointer(OFFLOAD)
    for step in range(3):
        x = _input(step)
        assert _same(_gradients(checkpointer, weights, x), _gradients(_plain, weights, x))
        assert checkpointer.memory.bytes_in_use == 0
        assert checkpointer.memory.bytes_registered == checkpointer.memory.peak_bytes == 3 * NBYTES


def test_after_the_forward_no_input_but_the_last_is_held():
    weights, held = _weights(), []
    checkpointer = Checkpointer(OFFLOAD)

    def layer(x, weight):
        held.append(weakref.ref(x.untyped_storage()))
        return _layer(x, weight)

    output = _forward(checkpointer, weights, _input(), layer)
    assert [ref() is None for ref in held] == [True, True, True, False]
    assert checkpointer.memory.bytes_in_use == 3 * NBYTES
    output.sum().backward()
    assert all(ref() is None for ref in held)
    assert checkpointer.memory.bytes_in_use == 0


def test_plain_checkpointing_holds_every_input():
    """The measure of the test above sees what it is meant to see."""
    held = []

    def layer(x, weight):
        held.append(weakref.ref(x.untyped_storage()))
        return _layer(x, weight)

    output = _forward(_plain, _weights(), _input(), layer)
    assert all(ref() is not None for ref in held)
    del output


def test_host_bytes_fall_call_by_call_in_the_backward_pass():
    weights, seen = _weights(), []
    checkpointer = Checkpointer(OFFLOAD)
    output = _forward(checkpointer, weights, _input(), lambda x, w: _Seen.apply(_layer(x, w), seen, checkpointer.memory))
    seen.clear()
    output.sum().backward()
    assert seen == [3 * NBYTES, 3 * NBYTES, 2 * NBYTES, NBYTES]  # the last call's input never left


class _Seen(torch.autograd.Function):
    """Identity; its backward notes the host bytes in use."""

    @staticmethod
    def forward(ctx, x, seen, memory):
        ctx.seen, ctx.memory = seen, memory
        return x.clone()

    @staticmethod
    def backward(ctx, *grad):
        ctx.seen.append(ctx.memory.bytes_in_use)
        return grad[0], None, None


def test_the_call_before_is_fetched_while_a_call_is_recomputed():
    weights, order = _weights(3), []
    checkpointer = Checkpointer(OFFLOAD)

    def layer(x, weight, index):
        alive = [(i, ref()) for i, ref in enumerate(records) if ref() is not None]
        order.append((index, [i for i, record in alive if any(slot._ahead is not None for slot in record._slots)]))
        return _layer(x, weight)

    records = []
    x = _input().requires_grad_()
    for index, weight in enumerate(weights):
        x = checkpointer(lambda h, w=weight, i=index: layer(h, w, i), x * 1.0)
        records.append(checkpointer._tape._last)
    order.clear()
    x.sum().backward()
    assert order == [(2, [1]), (1, [0]), (0, [])]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn]),
    st.booleans(),
)
def test_values_shape_and_dense_strides_come_back_whatever_the_layout(sizes, random, dtype, every_second):
    order = list(range(len(sizes)))
    random.shuffle(order)
    source = torch.randn(*[2 * s for s in sizes]).to(dtype).permute(order)
    if every_second:
        source = source[..., ::2]
    checkpointer = Checkpointer(OFFLOAD)
    scale = torch.ones((), requires_grad=True)
    got = []

    def function(x):
        got.append(x)
        return x.float() * scale

    output = checkpointer(function, source)
    following = checkpointer(lambda x: x * scale, output)
    following.sum().backward()
    first, again = got
    assert checkpointer.memory.peak_bytes == source.numel() * source.element_size()
    assert again is not first
    assert (again.shape, again.dtype) == (source.shape, dtype)
    assert torch.equal(again.float(), source.float())
    strides = zip(again.stride(), torch.empty_like(source).stride(), source.shape, strict=True)
    assert all(ours == theirs for ours, theirs, size in strides if size > 1)


def test_a_tensor_passed_twice_goes_once_also_across_calls():
    weights = _weights(1)
    checkpointer = Checkpointer(OFFLOAD)
    memory, x = torch.randn(ROWS, WIDTH) * 1.0, _input()
    for _ in range(4):
        x = checkpointer(lambda h, m, again: _layer(h, weights[0]) + m * again, x, memory, memory)
    assert checkpointer.memory.bytes_in_use == 4 * NBYTES  # three hidden states and the shared one
    x.sum().backward()
    assert checkpointer.memory.bytes_in_use == 0


def test_equal_addresses_at_different_times_are_different_tensors():
    weight = _weights(1)[0]
    checkpointer = Checkpointer(OFFLOAD)
    outputs = [checkpointer(lambda h: _layer(h, weight), torch.full((ROWS, WIDTH), float(i))) for i in range(6)]
    for i, output in enumerate(outputs):
        (ours,) = torch.autograd.grad(output.sum(), weight)
        (theirs,) = torch.autograd.grad(_layer(torch.full((ROWS, WIDTH), float(i)), weight).sum(), weight)
        assert torch.equal(ours, theirs)


def test_a_tensor_changed_between_two_calls_is_two_tensors():
    weight = _weights(1)[0]
    checkpointer = Checkpointer(OFFLOAD)
    x = _input()
    first = checkpointer(lambda h: _layer(h, weight), x)
    x.add_(1.0)
    second = checkpointer(lambda h: _layer(h, weight), x)
    third = checkpointer(lambda h: _layer(h, weight), second)
    (ours,) = torch.autograd.grad(third.sum(), weight)
    (theirs,) = torch.autograd.grad(_layer(_layer(_input() + 1.0, weight), weight).sum(), weight)
    assert torch.equal(ours, theirs)
    del first


def test_only_large_plain_floating_tensors_leave():
    checkpointer = Checkpointer(CheckpointPolicy(offload_inputs=True, smallest=NBYTES))
    weight, leaf = _weights(2)
    large, small = _input(), torch.randn(ROWS, WIDTH - 1)
    integers, parameter = torch.arange(4000), torch.nn.Parameter(torch.randn(ROWS, WIDTH))
    arguments = (large, small, integers, parameter, leaf, None, "text", 3, torch.empty(0))

    def function(*args):
        assert args[5:8] == (None, "text", 3)
        return _layer(args[0], weight) + args[1].sum() + args[2].sum() + args[3] + (args[0] @ args[4])

    first = checkpointer(function, *arguments)
    second = checkpointer(lambda x: x * weight.sum(), first)
    assert checkpointer.memory.bytes_in_use == NBYTES
    ours = torch.autograd.grad(second.sum(), [weight, parameter, leaf])
    theirs = torch.autograd.grad((function(*arguments) * weight.sum()).sum(), [weight, parameter, leaf])
    assert _same(ours, theirs)


def test_gradients_flow_to_what_made_the_inputs():
    weights, x = _weights(), _input().requires_grad_()
    checkpointer = Checkpointer(OFFLOAD)
    (ours,) = torch.autograd.grad(_forward(checkpointer, weights, x).square().sum(), x)
    (theirs,) = torch.autograd.grad(_forward(_plain, weights, x).square().sum(), x)
    assert torch.equal(ours, theirs)


def test_two_forwards_before_the_backwards_in_either_order():
    weights = _weights()
    for order in ((0, 1), (1, 0)):
        checkpointer = Checkpointer(OFFLOAD)
        losses = [_forward(checkpointer, weights, _input(seed)).square().sum() for seed in (5, 6)]
        assert checkpointer.memory.bytes_in_use == 7 * NBYTES  # all but the very last
        for which in order:
            ours = torch.autograd.grad(losses[which], weights)
            assert _same(ours, _gradients(_plain, weights, _input(5 + which)))
        assert checkpointer.memory.bytes_in_use == 0


def test_two_checkpointers_do_not_meet():
    first, second = Checkpointer(OFFLOAD), Checkpointer(OFFLOAD)
    weights, others = _weights(), _weights(seed=9)
    x = _forward(second, others, _forward(first, weights, _input()))
    assert first.memory.bytes_in_use == second.memory.bytes_in_use == 3 * NBYTES
    ours = torch.autograd.grad(x.sum(), weights + others)
    theirs = torch.autograd.grad(_forward(_plain, others, _forward(_plain, weights, _input())).sum(), weights + others)
    assert _same(ours, theirs)


def test_a_retained_graph_can_be_used_again():
    weights = _weights()
    checkpointer = Checkpointer(OFFLOAD)
    loss = _forward(checkpointer, weights, _input()).square().sum()
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert checkpointer.memory.bytes_in_use == 3 * NBYTES
    assert _same(first, torch.autograd.grad(loss, weights))
    assert checkpointer.memory.bytes_in_use == 0


def test_a_second_derivative_is_torchs():
    weights = _weights(2)
    results = []
    for run in (Checkpointer(OFFLOAD), _plain):
        gradients = torch.autograd.grad(_forward(run, weights, _input()).square().sum(), weights, create_graph=True)
        results.append(torch.autograd.grad(torch.stack([g.square().sum() for g in gradients]).sum(), weights))
    assert _same(*results)


def test_without_gradients_nothing_is_copied():
    checkpointer = Checkpointer(OFFLOAD)
    weights = _weights()
    with torch.no_grad():
        output = _forward(checkpointer, weights, _input())
    assert torch.equal(output, _forward(_plain, weights, _input()))
    assert checkpointer.memory.peak_bytes == checkpointer.memory.bytes_registered == 0
    training = _forward(checkpointer, weights, _input())
    with torch.no_grad():
        _forward(checkpointer, weights, _input())
    assert checkpointer.memory.peak_bytes == 3 * NBYTES  # nor does it send away what a training step holds
    del training


def test_a_graph_that_is_dropped_gives_its_memory_back():
    checkpointer = Checkpointer(OFFLOAD)
    output = _forward(checkpointer, _weights(), _input())
    assert checkpointer.memory.bytes_in_use == 3 * NBYTES
    del output
    assert checkpointer.memory.bytes_in_use == 0


def test_past_the_bound_the_forward_stops_and_the_next_step_works():
    weights = _weights()
    checkpointer = Checkpointer(CheckpointPolicy(offload_inputs=True, smallest=0, host_limit=3 * NBYTES))
    with pytest.raises(HostMemoryExceeded, match="host_limit"):
        _forward(checkpointer, _weights(5), _input())
    assert checkpointer.memory.bytes_in_use == 0
    assert _same(_gradients(checkpointer, weights, _input()), _gradients(_plain, weights, _input()))


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_exception_in_a_layer_leaves_nothing_behind(when):
    weights, calls = _weights(), []
    checkpointer = Checkpointer(OFFLOAD)

    def layer(x, weight):
        calls.append(1)
        if len(calls) == (3 if when == "forward" else 6):
            raise ArithmeticError("planned")
        return _layer(x, weight)

    with contextlib.suppress(ArithmeticError):
        _forward(checkpointer, weights, _input(), layer).sum().backward()
    assert len(calls) == (3 if when == "forward" else 6)
    gc.collect()  # the exception's traceback may hold frames in cycles
    assert checkpointer.memory.bytes_in_use == 0
    assert _same(_gradients(checkpointer, weights, _input()), _gradients(_plain, weights, _input()))


def test_an_input_changed_in_place_is_an_error_as_it_is_without_offload():
    weight = _weights(1)[0]
    for run in (Checkpointer(OFFLOAD), _plain):
        x = _input() * 1.0
        first = run(lambda h: _layer(h, weight), x)
        x.add_(1.0)
        second = run(lambda h: _layer(h, weight), first)
        with pytest.raises(RuntimeError, match=r"in place|inplace operation"):
            second.sum().backward()


def test_a_checkpoint_inside_a_checkpoint_costs_no_host_memory_of_its_own():
    weights = _weights(4)

    def nested(run):
        def outer(x, first, second):
            return run(lambda h: _layer(h, second), run(lambda h: _layer(h, first), x))

        x = _input()
        for first, second in (weights[:2], weights[2:]):
            x = run(lambda h, a=first, b=second: outer(h, a, b), x * 1.0)
        return x.square().sum()

    checkpointer = Checkpointer(OFFLOAD)
    loss = nested(checkpointer)
    assert checkpointer.memory.bytes_in_use == NBYTES
    assert _same(torch.autograd.grad(loss, weights), torch.autograd.grad(nested(_plain), weights))
    assert checkpointer.memory.bytes_in_use == 0


class _SaveFirst(torch.autograd.Function):
    """Saves its inputs before it computes, so that torch ends a recomputation before the computation."""

    computed = 0

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _SaveFirst.compute(x, weight)

    @staticmethod
    def compute(x, weight):
        _SaveFirst.computed += 1
        return x @ weight

    @staticmethod
    def backward(ctx, *grad):
        x, weight = ctx.saved_tensors
        return grad[0] @ weight.T, x.T @ grad[0]


def test_early_stop_is_on_as_in_torch():
    counts = []
    for run in (_plain, Checkpointer(OFFLOAD)):
        _SaveFirst.computed = 0
        _forward(run, _weights(), _input(), _SaveFirst.apply).sum().backward()
        counts.append(_SaveFirst.computed)
    assert counts[0] == counts[1]


def test_dropout_is_the_same_in_the_recomputation():
    weights = _weights()
    layer = lambda x, w: torch.nn.functional.dropout(_layer(x, w), 0.5)  # noqa: E731
    results = []
    for run in (Checkpointer(OFFLOAD), _plain):
        torch.manual_seed(3)
        results.append(_gradients(run, weights, _input(), layer=layer))
    assert _same(*results)


def test_torchs_own_options_pass_through_and_unsupported_ones_are_refused():
    checkpointer = Checkpointer(OFFLOAD)
    weight = _weights(1)[0]
    result = checkpointer(
        lambda x, *, scale: _layer(x, weight) * scale, _input(), scale=2.0, determinism_check="none", use_reentrant=None
    )
    assert torch.equal(result, _layer(_input(), weight) * 2.0)
    with pytest.raises(ValueError, match="use_reentrant"):
        checkpointer(_layer, _input(), weight, use_reentrant=True)
    with pytest.raises(TypeError, match="policy"):
        Checkpointer("offload")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": -1}, "smallest"),
        ({"keep_attention": True, "keep_budget": -1}, "keep_budget"),
        ({"keep_budget": 1}, "keep_attention"),
        ({"keep_attention": True, "offload_kept": True}, "keep_budget"),
        ({"host_limit": 1}, "offload_inputs"),
        ({"keep_operators": "aten::mm"}, "tuple"),
        ({"keep_operators": ("mm",)}, "aten::mm"),
    ],
)
def test_a_policy_that_could_not_take_effect_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CheckpointPolicy(**options)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_the_policy_and_starts_empty(twin_of):
    checkpointer = Checkpointer(OFFLOAD)
    output = _forward(checkpointer, _weights(), _input())
    twin = twin_of(checkpointer)
    assert twin.policy == OFFLOAD
    assert twin.memory.bytes_in_use == 0
    del output


def test_under_torch_compile_a_call_is_a_graph_break_with_the_same_gradients():
    weights = _weights(2)
    checkpointer = Checkpointer(OFFLOAD)
    compiled = torch.compile(lambda x: _forward(checkpointer, weights, x).square().sum(), backend="eager")
    ours = torch.autograd.grad(compiled(_input()), weights)
    assert _same(ours, _gradients(_plain, weights, _input()))
    assert checkpointer.memory.peak_bytes == NBYTES
