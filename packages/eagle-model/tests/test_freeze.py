"""Choosing what trains by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eagle_model.freeze import freeze, train_only


def training(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_module_name_means_all_of_it_and_the_rest_is_frozen(make_model: Any):
    model = make_model()
    assert train_only(model, ["mlp1"]) == [f"mlp1.{name}" for name, _ in model.mlp1.named_parameters()]
    assert training(model) == {f"mlp1.{name}" for name, _ in model.mlp1.named_parameters()}


def test_shell_patterns_cross_dots(make_model: Any):
    model = make_model()
    names = train_only(model, ["language_model.*.layers.1.self_attn.?_proj.weight"])
    assert names == [f"language_model.model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo"]


def test_a_prefix_is_a_module_and_not_the_beginning_of_a_word(make_model: Any):
    model = make_model()
    train_only(model, ["language_model.model.layers.1"])
    assert not any("layers.0." in name for name in training(model))
    with pytest.raises(ValueError, match="'mlp' matches no parameter"):
        train_only(model, ["mlp"])


def test_parameters_that_no_output_depends_on_stay_frozen(make_model: Any):
    model = make_model(select_layer=-3)
    train_only(model, ["vision_model", "mlp1", "language_model"])
    assert training(model) == {name for name, _ in model.named_parameters()} - set(model.unused_parameter_names())
    assert model.unused_parameter_names()


def test_a_pattern_that_matches_nothing_changes_nothing_and_is_an_error(make_model: Any):
    model = make_model()
    before = training(model)
    with pytest.raises(ValueError, match=r"'tower' matches no parameter; the model's modules are vision_model, mlp1"):
        train_only(model, ["mlp1", "tower"])
    with pytest.raises(ValueError, match="'tower' matches no parameter"):
        freeze(model, ["tower"])
    assert training(model) == before


def test_freezing_adds_up_and_a_frozen_tower_gets_no_gradient(make_model: Any):
    model = make_model().train()
    assert freeze(model, ["vision_model", "*.bias"])[0].startswith("vision_model.")
    freeze(model, ["*lm_head*"])
    assert not any(name.startswith("vision_model.") or name.endswith(".bias") or "lm_head" in name for name in training(model))
    ids = torch.tensor([[1, *[model.config.image_token_index] * 4, 2, 3]])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids).loss.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for _, parameter in model.named_parameters())
