"""Kept operators: not run again, right to the bit, within their budget on the device, the rest on the host or recomputed."""

import gc
from collections import Counter

import pytest
import torch
from eagle_kernels.checkpointing import Checkpointer, CheckpointPolicy, ReplayError
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
HEADS, TOKENS, DIM = 2, 5, 4
KEPT = HEADS * TOKENS * DIM * 4 + HEADS * TOKENS * 4  # output and log-sum-exp in float32


class _Count(TorchDispatchMode):
    """Counts the operators that run; those that are replayed above it do not."""

    def __init__(self):
        super().__init__()
        self.runs = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.runs[func] += 1
        return func(*args, **(kwargs or {}))


def _layer(x, weight):
    q, k, v = (x @ weight).split(HEADS * DIM, dim=-1)
    q, k, v = (part.view(1, TOKENS, HEADS, DIM).transpose(1, 2) for part in (q, k, v))
    return x + scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def _weights(count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(HEADS * DIM, 3 * HEADS * DIM, generator=generator, requires_grad=True) for _ in range(count)]


def _forward(run, weights, layer=_layer):
    x = torch.randn(1, TOKENS, HEADS * DIM, generator=torch.Generator().manual_seed(1))
    for weight in weights:
        x = run(lambda h, w=weight: layer(h, w), x * 1.0)
    return x


def _plain(function, *args, **kwargs):
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _gradients(run, weights, layer=_layer, seed=3):
    torch.manual_seed(seed)
    return torch.autograd.grad(_forward(run, weights, layer).square().sum(), weights)


def _same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("budget", "offload_kept", "runs", "kept", "host"),
    [
        pytest.param(None, False, 3, 3 * KEPT, 0, id="no bound"),
        pytest.param(2 * KEPT, False, 4, 2 * KEPT, 0, id="two fit and one is recomputed"),
        pytest.param(2 * KEPT - 1, False, 5, KEPT, 0, id="a byte short"),
        pytest.param(0, False, 6, 0, 0, id="all recomputed"),
        pytest.param(0, True, 3, 0, 2 * KEPT, id="all to the host but the last call's"),
        pytest.param(KEPT, True, 3, KEPT, KEPT, id="one on the device, one on the host"),
    ],
)
@pytest.mark.parametrize("offload_inputs", [False, True])
def test_attention_runs_once_per_call_that_keeps_it(budget, offload_kept, runs, kept, host, offload_inputs):
    weights = _weights()
    policy = CheckpointPolicy(
        offload_inputs=offload_inputs, keep_attention=True, keep_budget=budget, offload_kept=offload_kept, smallest=0
    )
    checkpointer = Checkpointer(policy)
    expected = _gradients(_plain, weights)
    for _ in range(2):
        with _Count() as count:
            loss = _forward(checkpointer, weights).square().sum()
            assert checkpointer.bytes_kept == kept
            assert checkpointer.memory.bytes_in_use == host + offload_inputs * 2 * TOKENS * HEADS * DIM * 4
            ours = torch.autograd.grad(loss, weights)
        assert count.runs[ATTENTION] == runs
        assert _same(ours, expected)
        assert checkpointer.bytes_kept == checkpointer.memory.bytes_in_use == 0


def test_what_replay_saves_is_real_work():
    """The count of the test above, for plain checkpointing: each attention runs twice."""
    with _Count() as count:
        _gradients(_plain, _weights())
    assert count.runs[ATTENTION] == 6


def test_kept_bytes_are_freed_without_the_cycle_collector():
    gc.collect()
    gc.disable()
    try:
        checkpointer = Checkpointer(CheckpointPolicy(keep_attention=True))
        loss = _forward(checkpointer, _weights()).sum()
        assert checkpointer.bytes_kept == 3 * KEPT
        loss.backward()
        assert checkpointer.bytes_kept == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("offload_kept", [False, True])
def test_a_retained_graph_replays_again(offload_kept):
    weights = _weights()
    policy = CheckpointPolicy(keep_attention=True, keep_budget=0 if offload_kept else None, offload_kept=offload_kept, smallest=0)
    loss = _forward(Checkpointer(policy), weights).square().sum()
    with _Count() as count:
        first = torch.autograd.grad(loss, weights, retain_graph=True)
        second = torch.autograd.grad(loss, weights)
    assert count.runs[ATTENTION] == 0
    assert _same(first, second)
    assert _same(first, _gradients(_plain, weights))


@pytest.mark.parametrize("early_stop", [True, False])
def test_dropout_before_inside_and_after_kept_operators_is_the_same_in_the_recomputation(early_stop):
    def layer(x, weight):
        h = x @ weight
        kept = torch.ops.aten.native_dropout(dropout(h, 0.5), 0.5, True)[0]  # a kept operator that draws random numbers
        return (dropout(kept.sin() + h, 0.5) + h)[..., : HEADS * DIM]

    weights = _weights()
    policy = CheckpointPolicy(keep_operators=("aten::native_dropout",))
    with set_checkpoint_early_stop(early_stop):
        ours = _gradients(Checkpointer(policy), weights, layer)
    assert _same(ours, _gradients(_plain, weights, layer))


@pytest.mark.parametrize("preserve_rng_state", [True, False])
def test_a_replay_leaves_the_random_state_alone(preserve_rng_state):
    checkpointer = Checkpointer(CheckpointPolicy(keep_operators=("aten::native_dropout",)))
    x = torch.randn(1, TOKENS, HEADS * DIM, requires_grad=True)
    function = lambda h: torch.ops.aten.native_dropout(h, 0.5, True)[0].sin()  # noqa: E731
    output = checkpointer(function, x, preserve_rng_state=preserve_rng_state)
    torch.rand(3)
    state = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_results_with_missing_tensors_and_numbers_are_replayed():
    library = torch.library.Library("eagle_test_keep", "DEF")
    library.define("several(Tensor x) -> (Tensor, int, Tensor[])")
    library.impl("several", lambda x: (x.sin(), 7, [x.cos(), x + 1]), "CompositeExplicitAutograd")
    seen = []

    def layer(x, weight):
        h = x @ weight
        # Without an output mask for them, weight and bias gradients are missing from the result.
        parts = torch.ops.aten.native_layer_norm_backward(
            h, h, [h.shape[-1]], h.mean(-1, keepdim=True), h.std(-1, keepdim=True), None, None, [True, False, False]
        )
        assert parts[1] is None
        one, number, two = torch.ops.eagle_test_keep.several(h.detach())
        seen.append((number, one, *two))
        return (h * (parts[0].detach() + one * number + two[0] - two[1]))[..., : HEADS * DIM].tanh()

    weights = _weights()
    checkpointer = Checkpointer(CheckpointPolicy(keep_operators=("aten::native_layer_norm_backward", "eagle_test_keep::several")))
    with _Count() as count:
        ours = _gradients(checkpointer, weights, layer)
    assert count.runs[torch.ops.eagle_test_keep.several.default] == len(weights)
    assert len(seen) == 2 * len(weights)
    assert _same(ours, _gradients(_plain, weights, layer))


def test_a_custom_operator_with_its_own_backward_is_kept_by_name():
    @torch.library.custom_op("eagle_test_keep_custom::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x * x * x

    cube.register_autograd(
        lambda ctx, grad: 3 * ctx.saved_tensors[0].square() * grad,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    weights = _weights()
    layer = lambda x, w: cube(x @ w)[..., : HEADS * DIM].sin()  # noqa: E731
    with _Count() as count:
        ours = _gradients(Checkpointer(CheckpointPolicy(keep_operators=("eagle_test_keep_custom::cube",))), weights, layer)
    assert count.runs[torch.ops.eagle_test_keep_custom.cube.default] == len(weights)
    assert _same(ours, _gradients(_plain, weights, layer))


def test_operators_without_gradients_are_replayed_too():
    def layer(x, weight):
        with torch.no_grad():
            mask = _layer(x, weight)
        return (x @ weight)[..., : HEADS * DIM] * mask

    weights = _weights()
    with _Count() as count:
        ours = _gradients(Checkpointer(CheckpointPolicy(keep_attention=True)), weights, layer)
    assert count.runs[ATTENTION] == len(weights)
    assert _same(ours, _gradients(_plain, weights, layer))


def test_a_backward_pass_inside_the_forward():
    def layer(x, weight):
        h = x.detach().requires_grad_()
        with torch.enable_grad():
            (inner,) = torch.autograd.grad(_layer(h, weight).square().sum(), h)
        return _layer(x, weight) + inner.sin() * x

    weights = _weights()
    for budget in (None, 0):
        policy = CheckpointPolicy(keep_attention=True, keep_operators=("aten::sin",), keep_budget=budget)
        checkpointer = Checkpointer(policy)
        assert _same(_gradients(checkpointer, weights, layer), _gradients(_plain, weights, layer))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param(lambda x: x.sin().sin().sin(), "kept operator 3", id="one more"),
        pytest.param(lambda x: x.sin().cos(), "ran aten::sin", id="another"),
        pytest.param(lambda x: x.sin(), "ran 1 kept", id="one fewer"),
    ],
)
def test_a_recomputation_that_takes_another_path_is_an_error(second, message):
    calls = []

    def function(x):
        calls.append(1)
        return (x.sin().sin() if len(calls) == 1 else second(x)) * x.exp()

    x = torch.randn(3, requires_grad=True)
    checkpointer = Checkpointer(CheckpointPolicy(keep_operators=("aten::sin", "aten::cos")))
    with set_checkpoint_early_stop(False):
        loss = checkpointer(function, x, determinism_check="none").sum()
    with pytest.raises(ReplayError, match=message):
        loss.backward()


def test_a_kept_output_changed_in_place_is_an_error():
    def layer(x, weight):
        h = torch.ops.aten.sin(x @ weight)
        return h.mul_(2.0).exp()[..., : HEADS * DIM]

    loss = _forward(Checkpointer(CheckpointPolicy(keep_operators=("aten::sin",))), _weights(1), layer).sum()
    with pytest.raises(RuntimeError, match="in place"):
        loss.backward()


@pytest.mark.parametrize("name", ["aten::mul_", "aten::view", "aten::add_.Tensor"])
def test_an_operator_that_writes_or_returns_views_is_refused(name):
    checkpointer = Checkpointer(CheckpointPolicy(keep_operators=(name,)))
    function = lambda x: (x.sin().mul_(2.0).add_(x)).view(-1) * x  # noqa: E731
    with pytest.raises(ValueError, match=r"cannot be replayed"):
        checkpointer(function, torch.randn(3, requires_grad=True))


def test_one_overload_can_be_named_alone():
    runs = {}
    for name in ("aten::add.Tensor", "aten::add.out", "aten::add"):
        x = torch.randn(3, requires_grad=True)
        with _Count() as count:
            Checkpointer(CheckpointPolicy(keep_operators=(name,)))(lambda h: ((h + h).sin() * (h * h)).cos(), x).sum().backward()
        runs[name] = count.runs[torch.ops.aten.add.Tensor]
    assert runs["aten::add.Tensor"] == runs["aten::add"] == runs["aten::add.out"] - 1


def test_a_foreign_context_beside_kept_operators_is_refused():
    with pytest.raises(ValueError, match="context_fn"):
        Checkpointer(CheckpointPolicy(keep_attention=True))(torch.sin, torch.ones(3), context_fn=lambda: None)
