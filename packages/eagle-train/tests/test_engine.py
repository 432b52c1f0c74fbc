"""The engine of a stage: what is trained, what is frozen, clipping, and gradients that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eagle_train.engine import LocalEngine, set_trainable
from eagle_train.errors import RecipeError, TrainingError
from eagle_train.recipe import Stage
from torch import nn


def stage(**values: Any) -> Stage:
    return Stage(name="s", context_length=16, steps=1, **values)


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"mlp1": nn.Linear(2, 2), "mlp10": nn.Linear(2, 2), "head": nn.Linear(2, 2)})


def test_exactly_the_parameters_under_a_prefix_are_trained():
    net = model()
    names = [name for name, _ in set_trainable(net, ["mlp1"])]
    assert names == ["mlp1.weight", "mlp1.bias"]  # and not mlp10
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == set(names)


def test_a_stage_after_another_thaws_what_it_trains():
    net = model()
    set_trainable(net, ["mlp1"])
    assert {name for name, _ in set_trainable(net, ["head"])} == {"head.weight", "head.bias"}


def test_unused_parameters_stay_frozen_also_under_a_prefix(load_toy: Callable[[], Any]):
    net = load_toy()
    unused = ["vision_model." + next(name for name, _ in net.vision_model.named_parameters())]
    trained = {name for name, _ in set_trainable(net, ["vision_model"], unused=unused)}
    assert trained == {name for name, _ in net.named_parameters() if name.startswith("vision_model.")} - set(unused)


def test_an_unknown_prefix_is_named_with_the_modules_there_are():
    with pytest.raises(RecipeError, match=r"nothing to train under mpl1; the model's modules are mlp1, mlp10, head"):
        set_trainable(model(), ["head", "mpl1"])


def test_training_nothing_is_refused():
    with pytest.raises(RecipeError, match="nothing to train"):
        set_trainable(model(), [])


def test_frozen_parameters_do_not_move_and_trained_ones_do():
    net = model()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    engine = LocalEngine(set_trainable(net, ["mlp1"]), stage())
    x = torch.ones(1, 2)
    engine.backward(net["head"](net["mlp1"](x)).square().sum())
    engine.step(0.1)
    moved = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"mlp1.weight", "mlp1.bias"}


def test_weight_decay_shrinks_matrices_and_leaves_biases_alone():
    net = nn.Linear(2, 2)
    bias, weight = net.bias.detach().clone(), net.weight.detach().clone()
    engine = LocalEngine(net.named_parameters(), stage(weight_decay=0.5))
    engine.backward((net.weight.sum() + net.bias.sum()) * 0.0)
    engine.step(0.1)
    assert torch.allclose(net.weight, weight * (1 - 0.1 * 0.5))
    assert torch.equal(net.bias, bias)


def test_the_norm_before_clipping_is_returned_and_gradients_are_cleared():
    net = nn.Linear(1, 1, bias=False)
    engine = LocalEngine(net.named_parameters(), stage(clip=0.5))
    engine.backward(net.weight.sum() * 7)
    assert engine.step(0.1) == pytest.approx(7)
    assert net.weight.grad is None


def test_gradients_that_are_not_finite_stop_training_and_leave_the_weights():
    net = nn.Linear(1, 1, bias=False)
    before = net.weight.detach().clone()
    engine = LocalEngine(net.named_parameters(), stage())
    engine.backward(net.weight.sum() * float("nan"))
    with pytest.raises(TrainingError, match="lower the stage's lr"):
        engine.step(0.1)
    assert torch.equal(net.weight, before)


def test_the_optimiser_goes_on_from_its_state():
    def trained(interrupted: bool) -> torch.Tensor:
        net = model()
        engine = LocalEngine(set_trainable(net, ["mlp1"]), stage())
        for step in range(4):
            if interrupted and step == 2:
                state = engine.state_dict()
                engine = LocalEngine(set_trainable(net, ["mlp1"]), stage())
                engine.load_state_dict(state)
            engine.backward(net["mlp1"](torch.full((1, 2), step + 1.0)).square().sum())
            engine.step(0.01)
        return net["mlp1"].get_parameter("weight").detach()

    assert torch.equal(trained(True), trained(False))
