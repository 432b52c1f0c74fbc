"""torch.compile: one whole graph for scoring, with and without pictures, and for decoding with a static cache.

Graphs are traced for every language model with the backend `eager`, which is quick. Code is generated and run by `inductor`,
the backend that users get, for one model: that needs a C++ compiler.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from transformers import CompileConfig

NEW = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")),
    reason="inductor needs a C++ compiler",
)


def batch(model: Any, tiles: int = 1) -> dict[str, Any]:
    ids = torch.tensor([[1, *[model.config.image_token_index] * 4 * tiles, 2, 3]])
    return {"input_ids": ids, "pixel_values": torch.randn(tiles, 3, 32, 32, generator=torch.Generator().manual_seed(tiles))}


def whole_graph(model: Any, backend: str = "eager") -> Any:
    return torch.compile(model, backend=backend, fullgraph=True)


def test_scoring_compiles_to_one_graph_with_and_without_pictures(make_model: Any):
    model = make_model()
    compiled = whole_graph(model)
    for inputs in (batch(model), {"input_ids": torch.tensor([[1, 2, 3, 4]])}):
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_training_compiles_and_changes_no_gradient(make_model: Any):
    model = make_model().train()
    inputs = {**batch(model), "labels": torch.arange(7)[None]}
    expected = torch.autograd.grad(model(**inputs).loss, [model.mlp1[1].weight, model.get_input_embeddings().weight])
    loss = whole_graph(model, "aot_eager")(**inputs).loss
    found = torch.autograd.grad(loss, [model.mlp1[1].weight, model.get_input_embeddings().weight])
    torch.testing.assert_close(found, expected)


def test_a_mismatch_of_tokens_and_features_is_noticed_in_a_compiled_graph_too(make_model: Any):
    model = make_model()
    inputs = batch(model)
    inputs["input_ids"][0, 1] = 5
    with torch.no_grad(), pytest.raises(RuntimeError, match="differ in number"):
        whole_graph(model)(**inputs)


@needs_compiler
def test_code_made_by_inductor_scores_like_the_model(make_model: Any):
    model = make_model(dtype=torch.float32, text_options={"num_hidden_layers": 1}, vision={"num_hidden_layers": 1})
    inputs = batch(model)
    compiled = whole_graph(model, "inductor")
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["inductor"]["extern_calls"] > 0


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("Qwen2ForCausalLM", "eager"),
        ("Qwen3ForCausalLM", "eager"),
        ("LlamaForCausalLM", "eager"),
        pytest.param("Qwen2ForCausalLM", "inductor", marks=needs_compiler),
    ],
)
def test_decoding_with_a_static_cache_compiles_to_one_graph_and_answers_the_same(make_model: Any, text: str, backend: str):
    model = make_model(text=text, dtype=torch.float32)
    inputs = batch(model)
    expected = model.generate(**inputs, **NEW)
    how: Any = CompileConfig(backend=backend, fullgraph=True)
    how.mode = None
    how._compile_all_devices = True  # transformers compiles on accelerators only, unless told otherwise
    torch._dynamo.utils.counters.clear()
    found = model.generate(**inputs, **NEW, cache_implementation="static", compile_config=how)
    assert torch.equal(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
