"""The printed table: one line for a stack of equal layers, every function with its implementation."""

import eagle_kernels
from transformers import Qwen2Config, Qwen2ForCausalLM


def _model():
    config = Qwen2Config(
        vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1
    )
    return Qwen2ForCausalLM(config)


def _table(applied=True):
    return eagle_kernels.explain(eagle_kernels.apply(_model()) if applied else _model())


def test_equal_layers_share_one_printed_line_and_keep_their_own_rows():
    table = _table()
    printed = str(table).splitlines()
    assert len([row for row in table if row.path.endswith("input_layernorm")]) == 3
    assert len([line for line in printed if "input_layernorm" in line]) == 1
    assert any(line.startswith("model.layers.*.input_layernorm x3 ") for line in printed)


def test_every_function_is_listed_with_what_runs_on_these_tensors():
    table = _table()
    assert {row.operator for row in table.functions} <= set(eagle_kernels.__all__)
    assert {row.implementation for row in table.functions} == {"torch"}
    assert all("cpu" in row.why for row in table.functions)
    head = next(row for row in table.functions if row.operator == "linear_cross_entropy")
    assert "synchronisation" in head.why


def test_an_untouched_model_is_its_own_and_says_that_it_can_be_replaced():
    rows = {row.path: row for row in _table(applied=False)}
    assert {row.implementation for row in rows.values()} == {"module's own"}
    assert all("has not been asked to" in row.why for path, row in rows.items() if path != "lm_head")


def test_rotation_and_loss_are_listed_with_what_they_do():
    rows = {row.path: row for row in _table()}
    assert {row.implementation for row in rows.values()} == {"torch"}
    assert "formed inside, from position ids" in rows["model.layers.0.self_attn"].why
    assert "passes position ids on" in rows["model.rotary_emb"].why
    assert "logits=None" in rows["(root)"].why
    assert "host synchronisation" in rows["(root)"].why
    assert "training loss" in rows["lm_head"].why


def test_the_implementation_follows_the_dtype_of_the_parameters():
    rows = eagle_kernels.explain(_model().double())
    assert all("not torch.float64" in row.why for row in rows.functions)


def test_a_rotary_module_without_layers_beside_it_is_explained():
    rotary = eagle_kernels.explain(_model().model.rotary_emb)
    assert [row.why for row in rotary] == ["there are no decoder layers beside it"]
