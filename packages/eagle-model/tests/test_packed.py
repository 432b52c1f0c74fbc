"""Packed batches: every document must be computed as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eagle_model import PACKED_SDPA
from eagle_model.attention import block_diagonal_mask, document_bounds, packed_attention
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = (9, 1, 14, 6)
TILES = (1, 0, 2, 0)


def documents(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length, tiles in zip(LENGTHS, TILES, strict=True):
        row = torch.randint(1, 200, (length,), generator=generator)
        row[1 : 1 + 4 * tiles] = model.config.image_token_index
        rows.append(row)
    return rows


def packed_batch(model: Any) -> dict[str, Any]:
    rows = documents(model)
    labels = [torch.cat([row[1:], torch.tensor([-100])]) for row in rows]
    for label in labels:
        label[label == model.config.image_token_index] = -100
    generator = torch.Generator().manual_seed(7)
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "cu_seqlens": torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32),
        "pixel_values": torch.randn(sum(TILES), 3, 32, 32, generator=generator, dtype=torch.float64),
        "shift_labels": torch.cat(labels)[None],
        "loss_weight": torch.rand(1, sum(LENGTHS), generator=generator, dtype=torch.float64),
    }


def per_document_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The same sum, from one forward of each document alone and plain cross entropy of its logits."""
    total = torch.zeros((), dtype=torch.float64)
    bounds = batch["cu_seqlens"].tolist()
    tile = 0
    for start, end, tiles in zip(bounds, bounds[1:], TILES, strict=False):
        pixel_values = batch["pixel_values"][tile : tile + tiles] if tiles else None
        tile += tiles
        logits = model(input_ids=batch["input_ids"][:, start:end], pixel_values=pixel_values).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits, batch["shift_labels"][0, start:end], reduction="none", ignore_index=-100
        )
        total = total + (losses * batch["loss_weight"][0, start:end]).sum()
    return total


@pytest.mark.parametrize("text", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("attention", [PACKED_SDPA, "sdpa", "eager"])
def test_a_pack_equals_its_documents_alone_in_loss_and_every_gradient(make_model: Any, text: str, attention: str):
    model = make_model(text=text, attention=attention).train()
    batch = packed_batch(model)
    alone = per_document_loss(model, batch)
    alone.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    packed = model(**batch).loss
    packed.backward()
    # Eager attention does its softmax in float32 whatever the model's type.
    rtol, atol = (1e-4, 1e-5) if attention == "eager" else (1e-9, 1e-11)
    torch.testing.assert_close(packed, alone, rtol=rtol, atol=atol)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=rtol, atol=atol, msg=name)


def test_the_eagle_parallel_kernel_on_one_rank_equals_documents_alone(make_model: Any):
    parallel = pytest.importorskip("eagle_parallel", reason="context parallelism is the extra eagle-model[parallel]")
    model = make_model().train()
    batch = packed_batch(model)
    alone = per_document_loss(model, batch)
    alone.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    parallel.apply(model, parallel.init_mesh())
    packed = model(**batch).loss
    packed.backward()
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-11)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("weighting", ["token", "sqrt_sample", "sqrt_turn"])
def test_the_collator_s_weights_give_the_released_loss_over_the_step(make_model: Any, weighting: Any):
    """Upstream section 1.7: sum of w times cross entropy over the sum of square roots of the units' lengths; token: the mean."""
    from eagle_data.collate import LoadedSample, collate

    model = make_model(attention=PACKED_SDPA)
    generator = torch.Generator().manual_seed(11)
    supervised = [[(2, 5), (7, 9)], [(1, 2)], [(3, 12)]]  # turns of each sample, as token ranges
    samples, units = [], []
    for turns in supervised:
        ids = torch.randint(1, 200, (12,), generator=generator).numpy().astype("int32")
        labels = torch.full((12,), -100).numpy().astype("int32")
        for start, end in turns:
            labels[start:end] = ids[start:end]
        lengths = [end - start for start, end in turns]
        units += {"token": [], "sqrt_sample": [sum(lengths)], "sqrt_turn": lengths}[weighting]
        samples.append(LoadedSample(ids, labels, torch.zeros(0, 3, 32, 32).numpy(), "here"))
    batch = collate(samples, tile_size=32, weighting=weighting)
    found = model(
        input_ids=torch.from_numpy(batch.input_ids),
        position_ids=torch.from_numpy(batch.position_ids),
        cu_seqlens=torch.from_numpy(batch.cu_seqlens),
        shift_labels=torch.from_numpy(batch.shift_labels),
        loss_weight=torch.from_numpy(batch.loss_weight),
        loss_rows=torch.from_numpy(batch.loss_rows),
    ).loss
    numerator = torch.zeros((), dtype=torch.float64)
    for sample, turns in zip(samples, supervised, strict=True):
        ids = torch.from_numpy(sample.input_ids).long()[None]
        losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        whole = sum(end - start for start, end in turns)
        for start, end in turns:
            unit = {"token": 1, "sqrt_sample": whole, "sqrt_turn": end - start}[weighting]
            numerator = numerator + losses[start - 1 : end - 1].sum() * unit**-0.5
    normaliser = sum(unit**0.5 for unit in units) if units else float(len(batch.loss_rows))
    weights = torch.from_numpy(batch.loss_weight)
    torch.testing.assert_close(float(weights.sum()), float(normaliser), rtol=1e-6, atol=0.0)  # so the trainer can add them up
    torch.testing.assert_close(found / normaliser, numerator / normaliser, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{"offload_inputs": True, "smallest": 0}, {"keep_attention": True}])
def test_checkpointing_with_offload_of_eagle_kernels_changes_no_gradient_of_a_pack(make_model: Any, options: dict[str, Any]):
    kernels = pytest.importorskip("eagle_kernels", reason="offload is the extra eagle-model[kernels]")

    def gradients(again: bool) -> dict[str, torch.Tensor]:
        model = make_model(attention=PACKED_SDPA).train()
        batch = packed_batch(model)
        checkpointer: Any = None
        if again:
            checkpointer = kernels.checkpoint_layers(model, kernels.CheckpointPolicy(**options))
        loss = model(**batch).loss
        if again and options.get("offload_inputs"):
            assert checkpointer.memory.peak_bytes > 0
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)


def test_changing_one_document_leaves_the_others_untouched(make_model: Any):
    model = make_model(attention=PACKED_SDPA)
    batch = packed_batch(model)
    del batch["shift_labels"], batch["loss_weight"]
    before = model(**batch).logits
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, 9] = 201
    after = model(**batch).logits
    changed = (before != after).any(-1)[0].nonzero().squeeze(1).tolist()
    assert changed == [9]


def test_packed_sdpa_without_bounds_is_sdpa(make_model: Any):
    model = make_model(attention=PACKED_SDPA)
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    ours = model(input_ids=ids, attention_mask=mask).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours[mask.bool()], model(input_ids=ids, attention_mask=mask).logits[mask.bool()])


def test_packed_sdpa_makes_nothing_of_tokens_by_tokens(make_model: Any):
    """A pack of many documents: no tensor that any operator returns may be as large as tokens x tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model = make_model(attention=PACKED_SDPA)
    count, length = 64, 32
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return result

    arguments = {
        "input_ids": torch.randint(1, 200, (1, count * length)),
        "position_ids": torch.arange(length).repeat(count)[None],
        "cu_seqlens": torch.arange(0, count * length + 1, length, dtype=torch.int32),
        "logits_to_keep": 1,
    }
    with Watch(), torch.no_grad():
        model(**arguments)
    assert largest < (count * length) ** 2 / 4
    model.set_attn_implementation("sdpa")
    with Watch(), torch.no_grad():
        model(**arguments)
    assert largest >= (count * length) ** 2


def test_gradient_checkpointing_keeps_the_bounds(make_model: Any, recompute: Any):
    model = make_model(attention=PACKED_SDPA).train()
    batch = packed_batch(model)
    plain = model(**batch).loss
    recompute(model)
    recomputed = model(**batch).loss
    torch.testing.assert_close(recomputed, plain)
    recomputed.backward()
    assert model.language_model.model.layers[0].self_attn.q_proj.weight.grad is not None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_the_explicit_mask_allows_exactly_earlier_tokens_of_the_same_document(lengths: list[int]):
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    mask = block_diagonal_mask(bounds)[0, 0]
    document = [d for d, length in enumerate(lengths) for _ in range(length)]
    for query in range(bounds[-1]):
        for key in range(bounds[-1]):
            assert bool(mask[query, key]) == (document[query] == document[key] and key <= query)


def test_flash_attention_gets_the_variable_length_arguments():
    packed = packed_attention(
        "flash_attention_2",
        torch.tensor([0, 3, 10], dtype=torch.int32),
        tokens=10,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    assert packed.attention_mask is None
    assert packed.kwargs["cu_seq_lens_q"].tolist() == packed.kwargs["cu_seq_lens_k"].tolist() == [0, 3, 10]
    assert packed.kwargs["max_length_q"] == packed.kwargs["max_length_k"] == 7


def test_names_registered_elsewhere_get_the_bounds_untouched_even_for_a_part_of_the_pack():
    bounds = torch.tensor([0, 3, 10], dtype=torch.int32)
    packed = packed_attention("somebody_elses", bounds, tokens=5, device=torch.device("cpu"), dtype=torch.float32)
    assert packed.kwargs["cu_seqlens"] is bounds
    assert packed.attention_mask is not None
    assert packed.attention_mask.numel() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cu_seqlens": torch.tensor([0, 9, 10])}, "ends at 10 but the pack has 30 tokens"),
        ({"cu_seqlens": torch.tensor([1, 30])}, "begin at 0"),
        ({"cu_seqlens": torch.tensor([0, 9, 9, 30])}, "grow strictly"),
        ({"cu_seqlens": torch.tensor([[0, 30]])}, "1-D"),
        ({"position_ids": None}, "position_ids that restart"),
        ({"attention_mask": torch.ones(1, 30)}, "neither attention_mask nor past_key_values"),
    ],
)
def test_packs_that_contradict_themselves_are_errors(make_model: Any, change: dict[str, Any], words: str):
    model = make_model(attention=PACKED_SDPA)
    with pytest.raises(ValueError, match=words):
        model(**{**packed_batch(model), **change})


def test_two_packed_rows_are_an_error(make_model: Any):
    model = make_model(attention=PACKED_SDPA)
    ids = torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="batch has 2 rows"):
        model(input_ids=ids, position_ids=ids, cu_seqlens=torch.tensor([0, 4]))


def test_attention_that_cannot_keep_documents_apart_is_refused():
    with pytest.raises(ValueError, match="flex_attention"):
        packed_attention("flex_attention", torch.tensor([0, 4]), tokens=4, device=torch.device("cpu"), dtype=torch.float32)
    assert document_bounds(torch.tensor([0, 4])) == [0, 4]


def test_sliding_window_layers_are_refused(make_model: Any):
    options = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model = make_model(text_options=options, attention=PACKED_SDPA)
    with pytest.raises(ValueError, match="full attention only"):
        model(**packed_batch(model))


def test_features_placed_by_the_caller_give_the_same_loss_and_gradients(make_model: Any):
    """The hook of context parallelism; here it places the features of all tiles where `embed` would."""
    model = make_model(attention=PACKED_SDPA).train()
    batch = packed_batch(model)
    context = batch["input_ids"] == model.config.image_token_index

    def place(embeddings: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return embeddings.masked_scatter(context.unsqueeze(-1), features)

    (expected,) = torch.autograd.grad(model(**batch).loss, model.mlp1[1].weight)
    output = model(**batch, place_features=place)
    assert torch.equal(torch.autograd.grad(output.loss, model.mlp1[1].weight)[0], expected)
    assert output.image_hidden_states.shape[0] == sum(TILES)
    moved = model(**batch, place_features=lambda embeddings, features: place(embeddings, features.flip(0)))
    assert not torch.equal(moved.loss, output.loss)


@pytest.mark.parametrize("change", [{"pixel_values": None}, {"image_flags": torch.ones(sum(TILES), dtype=torch.int64)}])
def test_features_cannot_be_placed_without_tiles_or_with_flags(make_model: Any, change: dict[str, Any]):
    model = make_model(attention=PACKED_SDPA)
    with pytest.raises(ValueError, match="place_features takes the pixel_values or visual_features of real tiles"):
        model(**{**packed_batch(model), **change}, place_features=lambda embeddings, features: embeddings)
