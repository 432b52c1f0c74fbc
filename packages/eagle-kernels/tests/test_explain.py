"""The printed table: one line for a stack of equal layers, every function with its implementation."""

import eagle_kernels
from transformers import Qwen2Config, Qwen2ForCausalLM


def _table():
    config = Qwen2Config(
        vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1
    )
    return eagle_kernels.explain(eagle_kernels.apply(Qwen2ForCausalLM(config)))


def test_equal_layers_share_one_printed_line_and_keep_their_own_rows():
    table = _table()
    printed = str(table).splitlines()
    assert len([row for row in table if row.path.endswith("input_layernorm")]) == 3
    assert len([line for line in printed if "input_layernorm" in line]) == 1
    assert any(line.startswith("model.layers.*.input_layernorm x3 ") for line in printed)


def test_every_function_is_listed_and_none_claims_a_fused_kernel():
    table = _table()
    assert {row.operator for row in table.functions} <= set(eagle_kernels.__all__)
    assert {row.implementation for row in table.functions} == {"torch"}
    head = next(row for row in table.functions if row.operator == "linear_cross_entropy")
    assert "synchronisation" in head.why


def test_the_head_and_the_rotation_are_listed_as_not_replaced():
    rows = {row.path: row for row in _table()}
    assert rows["lm_head"].operator == "linear_cross_entropy"
    assert rows["model.rotary_emb"].operator == "rope"
    assert rows["lm_head"].implementation == rows["model.rotary_emb"].implementation == "module's own"
