"""The training loss without logits: transformers' loss in every case it defines, and its own forward in every other."""

from typing import Any

import eagle_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
_FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


def _model(family="qwen2", **extra) -> Any:
    model, config = _FAMILIES[family]
    torch.manual_seed(0)
    return model(config(**_SIZES, head_dim=8, **extra)).train()


def _pair(family="qwen2", **extra):
    """The same model twice: as released, and with nothing but the loss replaced."""
    only = {"rms_norm": False, "rope": False, "swiglu": False, "layer_norm": False, "bias_gelu": False}
    return _model(family, **extra), eagle_kernels.apply(_model(family, **extra), **only)


def _batch(supervised=0.5, batch=2, tokens=9):
    torch.manual_seed(1)
    ids = torch.randint(50, (batch, tokens))
    return ids, ids.masked_fill(torch.rand(batch, tokens) >= supervised, -100)


def _assert_equal_step(released, applied, *args, tolerance=1e-5, **kwargs):
    expected, got = released(*args, **kwargs), applied(*args, **kwargs)
    assert got.logits is None
    torch.testing.assert_close(got.loss, expected.loss, rtol=tolerance, atol=tolerance, equal_nan=True)
    grads = (
        torch.autograd.grad(output.loss, list(model.parameters())) for model, output in ((released, expected), (applied, got))
    )
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", _FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(family, tied):
    ids, labels = _batch()
    _assert_equal_step(*_pair(family, tie_word_embeddings=tied), ids, labels=labels)


@settings(max_examples=15, deadline=None)
@given(
    supervised=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 12),
    items=st.sampled_from([None, 7, 2.5, torch.tensor(7), 0]),
    shifted=st.booleans(),
)
def test_every_normaliser_and_label_pattern_agrees_with_transformers(supervised, batch, tokens, items, shifted):
    ids, labels = _batch(supervised, batch, tokens)
    nothing_to_divide = items == 0 and bool((labels != -100).any())
    kwargs = {} if items is None or nothing_to_divide else {"num_items_in_batch": items}
    if shifted:
        kwargs["shift_labels"] = labels
    _assert_equal_step(*_pair(), ids, labels=labels, **kwargs)


def test_without_a_supervised_row_the_loss_is_nan_and_the_gradients_are_zero_as_in_transformers():
    released, applied = _pair()
    ids, _ = _batch()
    for model in (released, applied):
        loss = model(ids, labels=torch.full_like(ids, -100)).loss
        assert loss.isnan()
        assert all(not grad.any() for grad in torch.autograd.grad(loss, list(model.parameters())))


def test_another_ignore_index_is_heeded():
    ids, labels = _batch()
    _assert_equal_step(*_pair(), ids, labels=labels.where(labels != -100, 3), ignore_index=3)


def test_shift_labels_alone_and_known_rows_give_the_same_loss():
    model = eagle_kernels.apply(_model())
    ids, labels = _batch()
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    expected = model(ids, labels=labels).loss
    rows = (shifted.flatten() != -100).nonzero().squeeze(-1)
    torch.testing.assert_close(model(ids, shift_labels=shifted, loss_rows=rows).loss, expected, rtol=0, atol=0)


def test_row_weights_multiply_the_losses_and_their_sum_divides_them():
    model = eagle_kernels.apply(_model())
    ids, labels = _batch()
    weight = torch.rand(ids.shape)
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    losses = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), shifted.flatten(), reduction="none")
    total = (losses * weight.flatten()).sum()
    counted = weight[shifted != -100].sum()
    torch.testing.assert_close(model(ids, labels=labels, loss_weight=weight).loss, total / counted)
    torch.testing.assert_close(model(ids, labels=labels, loss_weight=weight, num_items_in_batch=4).loss, total / 4)


def test_the_other_outputs_are_those_of_the_class():
    released, applied = _pair()
    ids, labels = _batch()
    options = {"use_cache": True, "output_hidden_states": True}
    expected, got = released(ids, labels=labels, **options), applied(ids, labels=labels, **options)
    assert type(got) is type(expected)
    torch.testing.assert_close(got.hidden_states, expected.hidden_states)
    assert got.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 9


@pytest.mark.parametrize("case", ["eval", "no labels", "logits_to_keep", "tuple"])
def test_every_other_call_is_the_forward_of_the_class(case):
    released, applied = _pair()
    ids, labels = _batch()
    options: dict[str, Any] = {"labels": labels}
    if case == "eval":
        released.eval()
        applied.eval()
    elif case == "no labels":
        options = {}
    elif case == "logits_to_keep":
        options["logits_to_keep"] = 9  # all of them, but asked for
    else:
        options["return_dict"] = False
    expected, got = released(ids, **options), applied(ids, **options)
    assert type(got) is type(expected)
    assert torch.equal(got[0], expected[0])
    if case != "no labels":
        assert torch.equal(got[1], expected[1])


def test_row_weights_where_logits_are_made_are_an_error_and_not_ignored():
    model = eagle_kernels.apply(_model()).eval()
    ids, labels = _batch()
    with pytest.raises(ValueError, match=r"loss_weight is for the loss without logits.*model\.train\(\)"):
        model(ids, labels=labels, loss_weight=torch.ones(ids.shape))


def _with_bias(model):
    model.lm_head = nn.Linear(16, 50)


def _with_subclass(model):
    model.lm_head = type("Other", (nn.Linear,), {})(16, 50, bias=False)


def _with_loss_function(model):
    model.loss_function = lambda logits, labels, **kwargs: logits.sum() * 0 + 42.0


def _with_loss_type(model):
    model.loss_type = "ForMaskedLM"


def _with_foreign_head(model):
    vars(model.lm_head)["forward"] = lambda input: nn.functional.linear(input, model.lm_head.weight)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_bias, "lm_head has a bias"),
        (_with_subclass, "no plain torch.nn.Linear"),
        (_with_loss_function, "loss_function of this instance was replaced"),
        (_with_loss_type, "loss type is ForMaskedLM"),
        (_with_foreign_head, "no plain torch.nn.Linear"),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_model_whose_loss_needs_logits_keeps_them_and_says_why(change, reason, after):
    model = _model()
    if after:
        eagle_kernels.apply(model)
    change(model)
    if not after:
        eagle_kernels.apply(model)
    ids, labels = _batch()
    output = model(ids, labels=labels)
    assert output.logits is not None
    if change is _with_loss_function:
        assert float(output.loss.detach()) == 42.0
    row = next(row for row in eagle_kernels.explain(model) if row.path == "(root)")
    assert row.implementation == "module's own"
    assert reason in row.why


def test_the_head_is_called_so_that_hooks_which_bring_its_weight_fire():
    model = eagle_kernels.apply(_model())
    calls = []
    model.lm_head.register_forward_hook(lambda module, args, output: calls.append(output.dim()))
    ids, labels = _batch()
    model(ids, labels=labels).loss.backward()
    assert calls == [0]
    model(ids)
    assert calls == [0, 3]


def test_a_float64_model_gets_a_float64_loss():
    model = eagle_kernels.apply(_model()).double()
    ids, labels = _batch()
    logits = model(ids).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = model(ids, labels=labels).loss
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_under_autocast_the_product_runs_in_the_short_format_as_it_does_without_this_package(monkeypatch):
    released, applied = _pair()
    ids, labels = _batch()
    products = []

    def recorded(hidden, weight, **options):
        products.append((hidden.dtype, weight.dtype))
        return eagle_kernels.linear_cross_entropy(hidden, weight, **options)

    monkeypatch.setattr("eagle_kernels.causal_lm.linear_cross_entropy", recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _assert_equal_step(released, applied, ids, labels=labels, tolerance=2e-2)
    assert products == [(torch.bfloat16, torch.bfloat16)]
