"""DDP, FSDP2 and DeepSpeed ZeRO over data-parallel and context-parallel ranks train as one process does.

Two optimiser steps of a tiny attention model; the weights afterwards are compared. SGD, because Adam turns rounding of a
gradient that is really zero (the bias of keys) into a whole step. float64 for DDP and FSDP2; DeepSpeed keeps
float32, and its float32 sums in another order are what the looser bound of its tests is for.
"""

import os
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from eagle_parallel import cp_attention, global_normaliser, init_mesh, make_plan, normalise_loss, shard_batch
from eagle_parallel.mpu import DeepSpeedMesh
from eagle_parallel.testing import run_ranks
from torch import nn

PACKS = ((0, 7, 8, 20), (0, 11, 13), (0, 5), (0, 3, 16))
VOCABULARY, HIDDEN, STEPS, RATE = 17, 12, 2, 0.5
# (dp, cp, ulysses)
MESHES = ((1, 2, 1), (1, 2, 2), (2, 1, 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(HIDDEN, 12), nn.Linear(HIDDEN, 8), nn.Linear(12, HIDDEN)

    def forward(self, hidden, attend):
        k, v = self.kv(hidden).unflatten(-1, (2, 1, 4)).unbind(-3)
        return hidden + self.out(attend(self.q(hidden).unflatten(-1, (3, 4)), k, v).flatten(-2))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, batch, attend):
        hidden = self.table(batch["input_ids"])
        for layer in self.layers:
            hidden = layer(hidden, attend)
        losses = nn.functional.cross_entropy(self.head(hidden), batch["shift_labels"], reduction="none")
        return (losses * batch["loss_weight"]).sum()


def build(dtype):
    torch.manual_seed(0)
    return Model().to(dtype)


def batch_of(borders, step, dtype):
    generator = torch.Generator().manual_seed(borders[-1] + 100 * step)
    ids, labels = torch.randint(VOCABULARY, (2, borders[-1]), generator=generator)
    weight = (torch.rand(borders[-1], generator=generator) < 0.8).to(dtype)
    return {"input_ids": ids, "shift_labels": labels, "loss_weight": weight}


def dense(borders):
    """Attention of one process in plain operators, with a mask."""
    document = torch.repeat_interleave(torch.arange(len(borders) - 1), torch.tensor(borders).diff())
    hidden = (document[:, None] != document).logical_or(torch.ones(document.numel(), document.numel()).triu(1).bool())

    def attend(q, k, v):
        scores = torch.einsum("qhd,kd->hqk", q, k[:, 0]) * q.shape[-1] ** -0.5
        return torch.einsum("hqk,kd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v[:, 0])

    return attend


def alone(dp, dtype):
    """Weights after the steps on one process: every step is the token mean over two packs of every data-parallel rank."""
    model = build(dtype)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(STEPS):
        batches = [(borders, batch_of(borders, step, dtype)) for borders in PACKS[: 2 * dp]]
        total = sum(float(batch["loss_weight"].sum()) for _, batch in batches)
        optimiser.zero_grad()
        for borders, batch in batches:
            (model(batch, dense(borders)) / total).backward()
        optimiser.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def micro_batches(mesh, step, dtype):
    """Two packs for each optimiser step: (batch of this rank's tokens, attention), and the step's normaliser."""
    found = []
    for borders in PACKS[2 * mesh.dp_rank : 2 * mesh.dp_rank + 2]:
        plan = make_plan(borders, mesh, layout="zigzag")
        local = shard_batch(batch_of(borders, step, dtype), plan, mesh.cp_rank)
        found.append((local, lambda q, k, v, plan=plan: cp_attention(q, k, v, plan, mesh)))
    return found, global_normaliser([float(local["loss_weight"].sum()) for local, _ in found], mesh)


def train_in_torch(engine, cp, ulysses):
    mesh = init_mesh(cp, ulysses)
    model: Any = build(torch.float64)
    if engine == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(STEPS):
        packs, normaliser = micro_batches(mesh, step, torch.float64)
        optimiser.zero_grad()
        for batch, attend in packs:
            normalise_loss(model(batch, attend), normaliser, averaged_over=mesh.world).backward()
        optimiser.step()
    weights = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        weights[name.removeprefix("module.")] = whole.detach().clone()
    return weights


def train_in_deepspeed(cp, ulysses):
    """(weights, packs that DeepSpeed counts to a step) for each (ZeRO stage, with the mpu); it takes seconds to import."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank())}
    import deepspeed

    # Its shared-memory operator would be compiled at the first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    mesh = init_mesh(cp, ulysses)
    # It keeps an mpu once given for the life of the process, so that one comes last.
    return {
        (stage, mpu is not None): zero_steps(deepspeed, mesh, stage, mpu)
        for mpu in (None, DeepSpeedMesh(mesh))
        for stage in (1, 2, 3)
    }


def zero_steps(deepspeed, mesh, stage, mpu):
    model = build(torch.float32)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        # Left out, it clips at 1.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimiser, config=config, mpu=mpu)[0]
    for step in range(STEPS):
        packs, normaliser = micro_batches(mesh, step, torch.float32)
        for batch, attend in packs:
            loss = normalise_loss(engine(batch, attend), normaliser, averaged_over=mesh.world, accumulation_divided_by=2)
            engine.backward(loss)
            engine.step()
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())) if stage == 3 else torch.no_grad():
        weights = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    packs_a_step = engine.train_batch_size()
    engine.destroy()
    return weights, packs_a_step


def mpu_on_rank(cp):
    view = DeepSpeedMesh(init_mesh(cp))
    for kind in ("sequence_data_parallel", "model_parallel", "tensor_model_parallel"):
        group, rank, size = (getattr(view, f"get_{kind}_{what}")() for what in ("group", "rank", "world_size"))
        assert (dist.get_rank(group), dist.get_world_size(group)) == (rank, size), kind
    alone = dist.get_process_group_ranks(view.get_model_parallel_group())
    everyone = dist.get_process_group_ranks(view.get_data_parallel_group())
    return alone, everyone, view.get_data_parallel_rank(), view.get_data_parallel_world_size()


def check_weights(found, expected, tolerance, what: Any = ""):
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        bound = tolerance * float(truth.abs().max())
        assert float((found[name] - truth).abs().max()) <= bound, (what, name)


@pytest.mark.parametrize(("dp", "cp", "ulysses"), [*MESHES, (2, 2, 2), (1, 3, 1)])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_torch_engines_take_the_steps_of_one_process(engine, dp, cp, ulysses):
    truth = alone(dp, torch.float64)
    for weights in run_ranks(__file__, "train_in_torch", (dp * cp,), arguments=(engine, cp, ulysses))[dp * cp]:
        check_weights(weights, truth, 1e-12)


@pytest.mark.parametrize(("dp", "cp", "ulysses"), MESHES[1:])
def test_deepspeed_zero_takes_the_steps_of_one_process_with_and_without_the_mpu(dp, cp, ulysses):
    if find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    truth = alone(dp, torch.float32)
    for found in run_ranks(__file__, "train_in_deepspeed", (2,), arguments=(cp, ulysses), fresh=True)[2]:
        assert len(found) == 6
        for (stage, with_mpu), (weights, packs_a_step) in found.items():
            check_weights(weights, truth, 2e-6, (stage, with_mpu))
            assert packs_a_step == 2 * (dp if with_mpu else 2)


def test_the_mpu_shards_over_all_ranks_and_counts_batches_by_dp():
    for rank, found in enumerate(run_ranks(__file__, "mpu_on_rank", (4,), arguments=(2,))[4]):
        assert found == ([rank], [0, 1, 2, 3], rank // 2, 2)


def test_an_mpu_without_process_groups_is_an_error():
    with pytest.raises(ValueError, match=r"call deepspeed\.init_distributed\(\) before init_mesh"):
        DeepSpeedMesh(init_mesh())
