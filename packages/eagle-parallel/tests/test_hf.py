"""`apply` on models of transformers, in one process: what it changes, what it leaves alone, and what it refuses."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from eagle_parallel import Mesh, NotYetSupported, hf, init_mesh, make_plan

transformers: Any = pytest.importorskip("transformers")

BORDERS = (0, 5, 6, 13)
TOY = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def make_model(family="Qwen2", **options) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**TOY, **options})
    return getattr(transformers, f"{family}ForCausalLM")(config).to(torch.float64)


def pack():
    ids = torch.arange(BORDERS[-1])[None] * 7 % 29
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(BORDERS)])[None]
    return {"input_ids": ids, "position_ids": positions}


def alone(model):
    """Logits of the pack's documents, each in a call of its own with plain attention."""
    ids = pack()["input_ids"]
    with torch.no_grad():
        return torch.cat([model(ids[:, start:end]).logits for start, end in pairwise(BORDERS)], dim=1)


def close(found, truth):
    return float((found - truth).abs().max()) <= 1e-12 * float(truth.abs().max())


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama"])
def test_a_pack_with_a_plan_equals_its_documents_alone(family):
    model = make_model(family)
    truth = alone(model)
    hf.apply(model, init_mesh())
    with torch.no_grad():
        assert close(model(**pack(), cp_plan=make_plan(BORDERS, 1)).logits, truth)
        # Without a plan one process reads the documents from cu_seqlens.
        assert close(model(**pack(), cu_seqlens=torch.tensor(BORDERS, dtype=torch.int32)).logits, truth)


def test_calls_without_a_plan_on_one_rank_are_those_of_sdpa():
    model = make_model()
    ids = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 9, 2, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with torch.no_grad():
        truth = model(ids, attention_mask=mask).logits
        told = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        hf.apply(model, init_mesh())
        assert torch.equal(model(ids, attention_mask=mask).logits, truth)
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False), told)


def test_revert_gives_back_what_was_there_and_apply_again_replaces_the_mesh():
    model = make_model()
    truth = alone(model)
    model.set_attn_implementation("eager")
    eager = alone(model)
    over_two = Mesh(1, 2, 1, rank=0)
    hf.apply(hf.apply(model, over_two), init_mesh())
    with torch.no_grad():
        assert close(model(**pack(), cp_plan=make_plan(BORDERS, 1)).logits, truth)
    hf.revert(hf.revert(model))
    assert model.config._attn_implementation == "eager"
    assert torch.equal(alone(model), eager)
    assert not model.model._forward_pre_hooks


def test_other_models_and_a_copy_keep_their_own_attention():
    model, other = make_model(), make_model()
    hf.apply(model, Mesh(1, 2, 1, rank=0))
    assert other.config._attn_implementation == "sdpa"
    alone(other)
    twin = copy.deepcopy(model)
    hf.revert(model)
    alone(model)
    with pytest.raises(ValueError, match="without cp_plan"):
        alone(twin)


def test_only_the_language_model_of_a_composite_model_is_touched():
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8}
    vision = transformers.CLIPVisionConfig(patch_size=4, **vision)
    text = transformers.Qwen2Config(**TOY)
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=vision, text_config=text))
    before = model.model.vision_tower.config._attn_implementation
    hf.apply(model, Mesh(1, 2, 1, rank=0))
    assert model.model.vision_tower.config._attn_implementation == before
    assert model.model.language_model.config._attn_implementation == hf.NAME
    with pytest.raises(ValueError, match="without cp_plan"):
        model(input_ids=pack()["input_ids"])
    hf.revert(model)
    assert model.model.language_model.config._attn_implementation == before


PLAN = make_plan(BORDERS, 2)
LOCAL = {name: value[:, PLAN.local_index(0)] for name, value in pack().items()}


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (
            ValueError,
            r"over 2 ranks but was called without cp_plan; pass cp_plan=make_plan\(cu_seqlens, mesh\)",
            {"cp_plan": None},
        ),
        (TypeError, "cp_plan must be the Plan that make_plan returns, got list", {"cp_plan": [0, 13]}),
        (ValueError, "position_ids are missing", {"position_ids": None}),
        (ValueError, r"position_ids have shape \[1, 13\]", {"position_ids": pack()["position_ids"]}),
        (ValueError, "attention_mask of shape .* cannot be honoured", {"attention_mask": torch.ones(1, 7)}),
        (ValueError, "one row of tokens, but the call has 2 rows", {"input_ids": LOCAL["input_ids"].repeat(2, 1)}),
        (ValueError, "takes no past_key_values", {"past_key_values": transformers.DynamicCache()}),
        (ValueError, "made for cp_ring=3", {"cp_plan": make_plan(BORDERS, 3)}),
        (ValueError, "q has 6 tokens .* but rank 0 owns 7", {name: value[:, :6] for name, value in LOCAL.items()}),
    ],
)
def test_calls_that_cannot_be_right_are_errors_that_name_the_mend(error, match, call):
    model = hf.apply(make_model(), Mesh(1, 2, 1, rank=0))
    with pytest.raises(error, match=match):
        model(**{**LOCAL, "cp_plan": PLAN, **call})


def test_what_cp_attention_cannot_do_is_refused():
    sliding = make_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(NotYetSupported, match=r"layers of type sliding_attention.*Set use_sliding_window=False"):
        hf.apply(sliding, Mesh(1, 2, 1, rank=0))
    dropping = hf.apply(make_model(attention_dropout=0.1), init_mesh()).train()
    with pytest.raises(NotYetSupported, match="dropout of Qwen2Attention is not supported"):
        dropping(**pack(), cp_plan=make_plan(BORDERS, 1))
    with pytest.raises(NotYetSupported, match="sliding_window of Qwen2Attention is not supported"):
        hf.apply(sliding, init_mesh())(**pack(), cp_plan=make_plan(BORDERS, 1))


def test_what_is_no_model_of_transformers_or_was_never_applied_is_an_error():
    with pytest.raises(TypeError, match="model must be a transformers model, got Linear; apply it before wrapping"):
        hf.apply(torch.nn.Linear(1, 1), init_mesh())
    hf.register()
    model = make_model()
    model.set_attn_implementation(hf.NAME)
    with pytest.raises(ValueError, match=r"call eagle_parallel\.hf\.apply\(model, mesh\)"):
        model(**pack(), cp_plan=make_plan(BORDERS, 1))
