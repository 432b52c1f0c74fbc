"""One forward pass: features, scatter, losses, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eagle_model.loss import supervised_rows_cross_entropy, weighted_cross_entropy
from eagle_model.vision import layers_used
from transformers import SiglipVisionModel

TOKENS_PER_TILE = 4


def prompt(model: Any, tiles: int, *, before: int = 3, after: int = 5, seed: int = 0) -> torch.Tensor:
    """[1, tokens] of ordinary ids around `tiles` tiles of context tokens."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 200, (before + after,), generator=generator)
    context = torch.full((tiles * TOKENS_PER_TILE,), model.config.image_token_index)
    return torch.cat([text[:before], context, text[before:]])[None]


def pixels(tiles: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(tiles, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("select_layer", [-1, -2, -3, -4, 0, 1, 3])
def test_selected_features_equal_the_hidden_states_of_transformers_siglip(make_model: Any, select_layer: int):
    model = make_model(select_layer=select_layer)
    reference: Any = SiglipVisionModel(model.config.vision_config)
    reference = reference.to(torch.float64).eval()
    reference.load_state_dict(model.vision_model.vision_model.state_dict())
    values = pixels(2)
    with torch.no_grad():
        outputs = reference(values, output_hidden_states=True)
        expected = outputs.last_hidden_state if select_layer == -1 else outputs.hidden_states[select_layer]
        torch.testing.assert_close(model.vision_model(values, select_layer), expected)


def test_a_select_layer_outside_the_tower_is_an_error():
    assert layers_used(27, -4) == (24, False)
    with pytest.raises(ValueError, match="select_layer -29"):
        layers_used(27, -29)


def test_image_features_are_shuffled_and_projected(make_model: Any):
    model = make_model()
    values = pixels(2)
    patches = model.vision_model(values, -1)
    grid = patches.reshape(2, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(2, 4, 128)
    torch.testing.assert_close(model.get_image_features(values), model.mlp1(grid))
    torch.testing.assert_close(model.extract_feature(values), model.get_image_features(values))


@pytest.mark.parametrize("text", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
@pytest.mark.parametrize("options", [{}, {"mlp_connector_layers": 1}, {"use_pixel_shuffle": False, "mlp_connector_layers": 1}])
def test_every_language_model_and_connector_gives_finite_logits(make_model: Any, text: str, options: dict[str, Any]):
    model = make_model(text=text, **options)
    tokens = model.config.num_image_token
    ids = torch.cat([torch.tensor([5, 6]), torch.full((tokens,), model.config.image_token_index), torch.tensor([7])])[None]
    logits = model(input_ids=ids, pixel_values=pixels(1)).logits
    assert logits.shape == (1, tokens + 3, model.config.text_config.vocab_size)
    assert torch.isfinite(logits).all()


def test_tiles_fill_context_tokens_in_order_row_by_row(make_model: Any):
    model = make_model()
    ids = torch.cat([prompt(model, 1), prompt(model, 1, seed=3)])
    embeddings, features = model.embed(ids, pixels(2))
    context = ids == model.config.image_token_index
    assert features is not None
    torch.testing.assert_close(embeddings[context], features.flatten(0, 1))
    torch.testing.assert_close(embeddings[~context], model.get_input_embeddings()(ids)[~context])


def test_tiles_flagged_zero_are_dropped(make_model: Any):
    model = make_model()
    values = pixels(3)
    flagged = model(input_ids=prompt(model, 2), pixel_values=values, image_flags=torch.tensor([1, 0, 1])).logits
    torch.testing.assert_close(flagged, model(input_ids=prompt(model, 2), pixel_values=values[[0, 2]]).logits)


@pytest.mark.parametrize(
    ("tokens", "tiles", "words"), [(2, 1, "8 image context tokens .* 4 image features"), (0, 1, "has 0 image")]
)
def test_a_mismatch_of_tokens_and_features_states_both_counts(make_model: Any, tokens: int, tiles: int, words: str):
    model = make_model()
    with pytest.raises(ValueError, match=words):
        model(input_ids=prompt(model, tokens), pixel_values=pixels(tiles))


def test_context_tokens_without_pixels_are_an_error(make_model: Any):
    model = make_model()
    with pytest.raises(ValueError, match=r"4 image context tokens .* but 0 image features"):
        model(input_ids=prompt(model, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of input_ids"),
        ({"input_ids": torch.tensor([[1]]), "inputs_embeds": torch.zeros(1, 1, 32)}, "exactly one of input_ids"),
        ({"inputs_embeds": torch.zeros(1, 1, 32), "pixel_values": torch.zeros(1, 3, 32, 32)}, "inputs_embeds hides"),
        ({"input_ids": torch.tensor([[1]]), "pixel_values": torch.zeros(1, 3, 16, 16)}, "takes \\[tiles, 3, 32, 32\\]"),
        ({"input_ids": torch.tensor([[1]]), "labels": torch.tensor([[1]]), "shift_labels": torch.tensor([[1]])}, "not both"),
        (
            {"input_ids": torch.tensor([[1]]), "labels": torch.tensor([[1]]), "loss_weight": torch.ones(1, 1)},
            "belong to shift_labels",
        ),
        (
            {"input_ids": torch.tensor([[1]]), "labels": torch.tensor([[1]]), "cu_seqlens": torch.tensor([0, 1])},
            "across the documents",
        ),
    ],
)
def test_contradictory_arguments_are_errors(make_model: Any, arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        make_model()(**arguments)


def test_pixels_are_cast_to_the_type_of_the_tower(make_model: Any):
    model = make_model(dtype=torch.bfloat16)
    logits = model(input_ids=prompt(model, 1), pixel_values=pixels(1)).logits
    assert logits.dtype == torch.bfloat16


def test_everything_the_processor_returns_can_be_given_to_forward(make_model: Any, processor: Any):
    from PIL import Image

    model = make_model()
    inputs = processor(text="<image-1>What?", images=[Image.new("RGB", (64, 32))], return_tensors="pt")
    logits = model(**inputs).logits
    del inputs["image_sizes"]
    assert torch.equal(logits, model(**inputs).logits)


def test_features_made_before_give_the_same_logits(make_model: Any):
    model = make_model()
    values = pixels(2)
    direct = model(input_ids=prompt(model, 2), pixel_values=values).logits
    torch.testing.assert_close(model(input_ids=prompt(model, 2), visual_features=model.get_image_features(values)).logits, direct)


def test_logits_to_keep_returns_those_positions(make_model: Any):
    model = make_model()
    full = model(input_ids=prompt(model, 1), pixel_values=pixels(1))
    for keep in (2, torch.tensor([0, 7])):
        kept = model(input_ids=prompt(model, 1), pixel_values=pixels(1), logits_to_keep=keep).logits
        expected = full.logits[:, -2:] if isinstance(keep, int) else full.logits[:, keep]
        torch.testing.assert_close(kept, expected)
    as_tuple = model(input_ids=prompt(model, 1), pixel_values=pixels(1), return_dict=False)
    torch.testing.assert_close(as_tuple[0], full.logits)


def test_labels_give_the_mean_cross_entropy_and_logits(make_model: Any):
    model = make_model()
    ids = prompt(model, 1)
    labels = ids.clone()
    labels[:, :8] = -100
    output = model(input_ids=ids, pixel_values=pixels(1), labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, 7:-1].float(), ids[0, 8:])
    torch.testing.assert_close(output.loss.float(), expected, rtol=1e-5, atol=1e-5)


def test_shift_labels_give_a_weighted_sum_and_no_logits(make_model: Any):
    model = make_model()
    ids = prompt(model, 1)
    labels = torch.full_like(ids, -100)
    labels[0, 7:-1] = ids[0, 8:]
    weight = torch.rand(labels.shape, dtype=torch.float64)
    arguments = {"input_ids": ids, "pixel_values": pixels(1)}
    output = model(**arguments, shift_labels=labels, loss_weight=weight)
    losses = torch.nn.functional.cross_entropy(model(**arguments).logits[0], labels[0], reduction="none", ignore_index=-100)
    assert output.logits is None
    torch.testing.assert_close(output.loss, (losses * weight[0]).sum())
    rows = (labels[0] != -100).nonzero().squeeze(1)
    torch.testing.assert_close(model(**arguments, shift_labels=labels, loss_rows=rows).loss, losses.sum())


def test_plain_loss_and_the_installed_operator_agree_with_gradients():
    torch.manual_seed(0)
    labels = torch.tensor([3, -100, 0, -100, 6])
    weight = torch.tensor([0.5, 9.0, 1.0, 9.0, 0.25], dtype=torch.float64)
    results = []
    for operator in (weighted_cross_entropy, supervised_rows_cross_entropy):
        torch.manual_seed(1)
        hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        head = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        loss = operator(hidden, head, labels, loss_weight=weight)
        loss.backward()
        results.append((loss.detach(), hidden.grad, head.grad))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


def test_a_batch_without_supervised_rows_has_zero_loss_and_zero_gradients():
    hidden = torch.randn(3, 4, requires_grad=True)
    head = torch.randn(7, 4, requires_grad=True)
    loss = weighted_cross_entropy(hidden, head, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_labels_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="shift_labels has shape"):
        weighted_cross_entropy(torch.zeros(3, 4), torch.zeros(7, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="loss_weight has shape"):
        weighted_cross_entropy(torch.zeros(3, 4), torch.zeros(7, 4), torch.zeros(3, dtype=torch.long), loss_weight=torch.zeros(2))


@pytest.mark.parametrize("select_layer", [-1, -2])
def test_a_gradient_reaches_every_parameter_but_those_named_unused(make_model: Any, select_layer: int):
    model = make_model(select_layer=select_layer).train()
    ids = prompt(model, 2)
    model(input_ids=ids, pixel_values=pixels(2), labels=ids).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set(model.unused_parameter_names())
    assert any("head" in name for name in without)
    # Adding one constant to all keys moves no softmax, so a key bias has none by nature.
    zero = {n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any() and "k_proj.bias" not in n}
    assert zero == set()


def test_a_dummy_tile_keeps_the_tower_in_the_graph_without_changing_the_loss(make_model: Any):
    model = make_model().train()
    ids = prompt(model, 0)
    plain = model(input_ids=ids, labels=ids).loss
    dummy = model(input_ids=ids, labels=ids, pixel_values=torch.ones(1, 3, 32, 32), image_flags=torch.tensor([0])).loss
    assert torch.equal(plain, dummy)
    dummy.backward()
    unused = set(model.unused_parameter_names())
    for name, parameter in model.named_parameters():
        if name not in unused:
            assert parameter.grad is not None, name
            assert "language_model" in name or not parameter.grad.any(), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_tower_language_model_and_connector_changes_no_gradient(make_model: Any, recompute: Any, reentrant: bool):
    def gradients(again: bool) -> tuple[dict[str, torch.Tensor], list[int]]:
        model = make_model(mlp_checkpoint=again).train()
        if again:
            recompute(model, {"use_reentrant": reentrant})
        watched = [model.vision_model.vision_model.encoder.layers[0].mlp, model.mlp1[1], model.language_model.model.layers[0].mlp]
        runs = [0] * len(watched)
        for i, module in enumerate(watched):

            def count(*_: Any, i: int = i) -> None:
                runs[i] += 1

            module.register_forward_pre_hook(count)
        ids = prompt(model, 2)
        model(input_ids=ids, pixel_values=pixels(2), labels=ids).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}, runs

    (plain, once), (recomputed, twice) = gradients(False), gradients(True)
    assert (once, twice) == ([1, 1, 1], [2, 2, 2])
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(make_model: Any, side: str):
    model = make_model()
    ids = prompt(model, 1)
    pad = torch.zeros(1, 4, dtype=torch.long)
    padded = torch.cat([pad, ids] if side == "left" else [ids, pad], dim=1)
    mask = torch.cat([pad, torch.ones_like(ids)] if side == "left" else [torch.ones_like(ids), pad], dim=1)
    alone = model(input_ids=ids, pixel_values=pixels(1)).logits
    logits = model(input_ids=padded, pixel_values=pixels(1), attention_mask=mask).logits
    real = logits[:, 4:] if side == "left" else logits[:, :-4]
    # Rotary angles are float32 in transformers, so shifted positions differ in their last bits.
    torch.testing.assert_close(real, alone, rtol=1e-4, atol=1e-4)
